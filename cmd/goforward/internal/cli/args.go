package cli

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// flagValue is a flag whose text is read by a parse function.
type flagValue[T any] struct {
	target   *T
	typeName string
	parse    func(string) (T, error)
	text     string
}

func (v *flagValue[T]) String() string { return v.text }
func (v *flagValue[T]) Type() string   { return v.typeName }

func (v *flagValue[T]) Set(s string) error {
	t, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.target, v.text = t, s
	return nil
}

// parseEndpoint reads an address with an optional port. If there is none, the port is 0.
func parseEndpoint(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
	}
	addr, err := parseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("want an IP address, or ADDRESS:PORT")
	}
	return netip.AddrPortFrom(addr, 0), nil
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("want an IP address")
	}
	return addr.Unmap(), nil
}

// parseIGD checks the URL of a device description: it must be one that the UPnP backend
// accepts.
func parseIGD(s string) (string, error) {
	b, err := upnp.New(upnp.Config{URL: s})
	if err != nil || s == "" {
		return "", fmt.Errorf("want http://ADDRESS:PORT/PATH, with an IP address")
	}
	return s, b.Close()
}

// igdHost returns the IP address in the URL of a device description.
func igdHost(s string) (netip.Addr, error) {
	u, err := url.Parse(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(u.Hostname())
}

// parseSeconds reads a number of seconds, like natpmpc, or a duration.
func parseSeconds(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if n, numErr := strconv.ParseUint(s, 10, 32); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("want seconds, or a duration such as 90m")
	case d <= 0:
		return 0, fmt.Errorf("want more than 0")
	}
	return d, nil
}

// parseLifetime reads a lifetime like parseSeconds, or "forever". It rejects lifetimes that
// the protocols cannot carry. On the wire, 0 deletes a mapping; goforward unmap does that.
func parseLifetime(s string) (time.Duration, error) {
	if s == "forever" {
		return backends.Forever, nil
	}
	d, err := parseSeconds(s)
	const longest = math.MaxUint32 * time.Second
	switch {
	case s == "0":
		return 0, fmt.Errorf("want more than 0; to delete a mapping, use goforward unmap")
	case err == nil && d > longest:
		return 0, fmt.Errorf("want at most %d seconds, or forever", uint32(math.MaxUint32))
	}
	return d, err
}

// parseProtocols reads the name or number of a protocol, or "both": TCP and UDP as a unit.
func parseProtocols(s string) ([]backends.Protocol, error) {
	if strings.EqualFold(s, "both") {
		return []backends.Protocol{backends.TCP, backends.UDP}, nil
	}
	p, err := backends.ParseProtocol(s)
	if err != nil {
		return nil, fmt.Errorf("no protocol %q: want tcp, udp, both, or the name or number of another protocol", s)
	}
	return []backends.Protocol{p}, nil
}

// splitCommand splits a command line into words at spaces, tabs and newlines. Single quotes
// keep all characters between them. Between double quotes, a backslash escapes a double quote
// or a backslash; outside of quotes, it escapes any character. There is no shell: variables,
// patterns and pipes have no meaning.
func splitCommand(s string) ([]string, error) {
	splitter := commandSplitter{}
	for _, r := range s {
		splitter.add(r)
	}
	if err := splitter.finish(); err != nil {
		return nil, err
	}
	if len(splitter.words) == 0 || splitter.words[0] == "" {
		return nil, errors.New("there is no command")
	}
	return splitter.words, nil
}

// commandSplitter holds the words of a command line that is being read.
type commandSplitter struct {
	words   []string
	word    strings.Builder
	inWord  bool // in a word, which may be empty
	quote   rune // the open quote, or 0
	escaped bool // the last character was a backslash that escapes the next one
}

// add reads one character.
func (c *commandSplitter) add(r rune) {
	switch {
	case c.escaped:
		c.escaped = false
		if c.quote == '"' && r != '"' && r != '\\' {
			c.word.WriteByte('\\')
		}
		c.word.WriteRune(r)
	case r == '\\' && c.quote != '\'':
		c.escaped, c.inWord = true, true
	case r == c.quote:
		c.quote = 0
	case c.quote == 0 && (r == '\'' || r == '"'):
		c.quote, c.inWord = r, true
	case c.quote == 0 && strings.ContainsRune(" \t\n\r", r):
		c.next()
	default:
		c.word.WriteRune(r)
		c.inWord = true
	}
}

// next completes the current word, if there is one.
func (c *commandSplitter) next() {
	if c.inWord {
		c.words = append(c.words, c.word.String())
	}
	c.word.Reset()
	c.inWord = false
}

// finish completes the last word.
func (c *commandSplitter) finish() error {
	switch {
	case c.quote != 0:
		return errors.New("a quote " + string(c.quote) + " is not closed")
	case c.escaped:
		return errors.New("there is nothing after the last backslash")
	}
	c.next()
	return nil
}

func completeList(values []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeInterfaces(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, ifi := range interfaces {
		names = append(names, ifi.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}
