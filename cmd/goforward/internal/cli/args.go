package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
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
	host := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		host = s[1 : len(s)-1]
	}
	addr, err := parseAddr(host)
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

// parseSource reads an address that a host can have.
func parseSource(s string) (netip.Addr, error) {
	addr, err := parseAddr(s)
	if err == nil && (addr.IsUnspecified() || addr.IsMulticast()) {
		err = fmt.Errorf("want the IP address of a host")
	}
	return addr, err
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

// durationUnits are the units of parseDuration.
var durationUnits = map[string]time.Duration{
	"": time.Second, "ns": time.Nanosecond, "us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": day, "w": 7 * day,
}

const day = 24 * time.Hour

var (
	errDuration = errors.New("want seconds, or a duration such as 500ms, 90m, 1d12h or 2w")
	errPositive = errors.New("want more than 0")
)

// parseDuration reads a number of seconds, like natpmpc, or numbers that each have a unit. Numbers
// may have a fraction. A duration of more than 292 years is math.MaxInt64.
func parseDuration(s string) (time.Duration, error) {
	if strings.HasPrefix(s, "-") {
		return 0, errPositive
	}
	total := 0.0
	for rest := s; rest != ""; {
		var number, unit string
		number, rest = cutPrefixOf(rest, isDecimal)
		unit, rest = cutPrefixOf(rest, func(r rune) bool { return !isDecimal(r) })
		n, err := strconv.ParseFloat(number, 64)
		size, known := durationUnits[unit]
		if tooLarge := errors.Is(err, strconv.ErrRange); err != nil && !tooLarge || !known || unit == "" && number != s {
			return 0, errDuration
		}
		total += n * float64(size)
	}
	switch {
	case s == "":
		return 0, errDuration
	case total < 1:
		return 0, errPositive
	case total >= math.MaxInt64:
		return math.MaxInt64, nil
	}
	return time.Duration(math.Round(total)), nil
}

// cutPrefixOf splits a text after its longest prefix of matching characters.
func cutPrefixOf(s string, matches func(rune) bool) (prefix, rest string) {
	rest = strings.TrimLeftFunc(s, matches)
	return s[:len(s)-len(rest)], rest
}

// isDecimal reports whether a character belongs to a number.
func isDecimal(r rune) bool { return '0' <= r && r <= '9' || r == '.' }

// longestTimeout is the limit of timeouts.
const longestTimeout = 365 * day

// parseSeconds reads a timeout: seconds or a duration.
func parseSeconds(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d > longestTimeout {
		return 0, errors.New("want at most 365d")
	}
	return d, err
}

// parseLifetime reads a lifetime like parseDuration, or "forever". It rejects lifetimes that
// the protocols cannot carry. On the wire, 0 deletes a mapping; goforward unmap does that.
func parseLifetime(s string) (time.Duration, error) {
	if strings.EqualFold(s, "forever") {
		return backends.Forever, nil
	}
	d, err := parseDuration(s)
	const longest = math.MaxUint32 * time.Second
	switch {
	case errors.Is(err, errPositive):
		return 0, fmt.Errorf("%w; to delete a mapping, use goforward unmap", err)
	case err != nil:
		return 0, fmt.Errorf("%w, or forever", err)
	case d > longest:
		return 0, fmt.Errorf("want at most %d seconds (about 136 years), or forever", uint32(math.MaxUint32))
	}
	return d, nil
}

// backendAliases are other names of protocols that --backend accepts.
var backendAliases = map[string]string{
	"nat-pmp": natpmp.Name, "nat_pmp": natpmp.Name, "igd": upnp.Name, "upnp-igd": upnp.Name, "upnpigd": upnp.Name,
}

// backendListParser returns a parser for a list of protocol names.
func backendListParser(known []protocol) func(string) ([]string, error) {
	return func(s string) ([]string, error) {
		names := protocolNames(known)
		var order []string
		for text := range strings.SplitSeq(s, ",") {
			name := strings.ToLower(strings.TrimSpace(text))
			name = cmp.Or(backendAliases[name], name)
			if !slices.Contains(names, name) {
				return nil, fmt.Errorf("no backend %q: choose from %s", text, strings.Join(names, ", "))
			}
			if !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
		return order, nil
	}
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
