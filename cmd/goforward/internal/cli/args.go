package cli

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// value is a flag whose text has a form of its own.
type flagValue[T any] struct {
	target    *T
	typeName  string
	parse func(string) (T, error)
	text  string
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

// parseEndpoint reads an address with or without a port, which is 0 then.
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

// parseIGD reads the URL of a device description, as the backend takes it.
func parseIGD(s string) (string, error) {
	b, err := upnp.New(upnp.Config{URL: s})
	if err != nil || s == "" {
		return "", fmt.Errorf("want http://ADDRESS:PORT/PATH, with an IP address")
	}
	return s, b.Close()
}

// igdHost is the address in such a URL.
func igdHost(s string) (netip.Addr, error) {
	u, err := url.Parse(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(u.Hostname())
}

// parseSeconds reads plain seconds, as natpmpc does, or a duration.
func parseSeconds(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if n, numErr := strconv.ParseUint(s, 10, 32); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("want seconds, or a duration such as 90m")
	case d <= 0:
		return 0, fmt.Errorf("want more than nothing")
	}
	return d, nil
}

// parseLifetime is parseSeconds with what the protocols cannot carry left out.
// Zero deletes on their wire, which here is unmap's to do.
func parseLifetime(s string) (time.Duration, error) {
	if s == "forever" {
		return backends.Forever, nil
	}
	d, err := parseSeconds(s)
	const longest = math.MaxUint32 * time.Second
	switch {
	case s == "0":
		return 0, fmt.Errorf("want more than nothing: to take a mapping away, goforward unmap")
	case err == nil && d > longest:
		return 0, fmt.Errorf("want at most %d seconds, or forever", uint32(math.MaxUint32))
	}
	return d, err
}

// parseProtocols reads the name or number of a protocol, or both, which is TCP
// and UDP as a unit.
func parseProtocols(s string) ([]backends.Protocol, error) {
	if strings.EqualFold(s, "both") {
		return []backends.Protocol{backends.TCP, backends.UDP}, nil
	}
	p, err := backends.ParseProtocol(s)
	if err != nil {
		return nil, fmt.Errorf("no protocol %q: want tcp, udp, both, or another's name or number", s)
	}
	return []backends.Protocol{p}, nil
}

// ports are what the arguments of map and unmap name.
type ports struct {
	external  uint16              // 0: no wish
	internal  uint16              // 0: none named
	protocols []backends.Protocol // nil: none named
}

// parsePorts reads INTERNAL, EXTERNAL:INTERNAL, either with /PROTOCOL behind it,
// or PUBLIC PRIVATE, two plain numbers as natpmpc and py-natpmp have them.
func parsePorts(args []string) (ports, error) {
	switch len(args) {
	case 0:
		return ports{}, nil
	case 1:
		return parsePortArg(args[0])
	case 2:
		if strings.ContainsAny(args[0]+args[1], ":/") {
			return ports{}, usagef("%q %q: two arguments are PUBLIC PRIVATE, plain numbers", args[0], args[1])
		}
		return parsePair(args[0], args[1])
	}
	return ports{}, usagef("%d arguments: one port at a time", len(args))
}

func parsePortArg(s string) (p ports, err error) {
	numbers, protocol, named := strings.Cut(s, "/")
	if named {
		if p.protocols, err = parseProtocols(protocol); err != nil {
			return ports{}, usagef("%v", err)
		}
	}
	external, internal, both := strings.Cut(numbers, ":")
	if !both {
		external, internal = "0", numbers
	}
	pair, err := parsePair(external, internal)
	pair.protocols = p.protocols
	return pair, err
}

func parsePair(external, internal string) (p ports, err error) {
	if p.external, err = parsePort(external); err != nil {
		return ports{}, err
	}
	if p.internal, err = parsePort(internal); err != nil {
		return ports{}, err
	}
	if p.internal == 0 { // means all ports on the wire
		return ports{}, usagef("internal port 0: name one, or leave the ports out for a free one")
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, usagef("%q is no port: want a number up to 65535, as in 8080, 80:8080 or 80:8080/udp", s)
	}
	return uint16(n), nil
}

// splitCommand reads a command line as words apart by spaces, tabs or newlines.
// Between single quotes all stands for itself; between double quotes a backslash
// takes the meaning of a double quote or backslash behind it, and elsewhere that
// of any character. There is no shell: no variables, no patterns, no pipes.
func splitCommand(s string) ([]string, error) {
	words := commandSplitter{}
	for _, r := range s {
		words.add(r)
	}
	if err := words.finish(); err != nil {
		return nil, err
	}
	if len(words.words) == 0 || words.words[0] == "" {
		return nil, errors.New("there is no command")
	}
	return words.words, nil
}

// commandWords are the words of a command line, as far as it is read.
type commandSplitter struct {
	words    []string
	word    strings.Builder
	inWord  bool // a word, which may be empty
	quote   rune // that is open, or 0
	escaped bool // by a backslash
}

// add reads one character.
func (w *commandSplitter) add(r rune) {
	switch {
	case w.escaped:
		w.escaped = false
		if w.quote == '"' && r != '"' && r != '\\' {
			w.word.WriteByte('\\')
		}
		w.word.WriteRune(r)
	case r == '\\' && w.quote != '\'':
		w.escaped, w.inWord = true, true
	case r == w.quote:
		w.quote = 0
	case w.quote == 0 && (r == '\'' || r == '"'):
		w.quote, w.inWord = r, true
	case w.quote == 0 && strings.ContainsRune(" \t\n\r", r):
		w.next()
	default:
		w.word.WriteRune(r)
		w.inWord = true
	}
}

// next ends a word, if there is one.
func (w *commandSplitter) next() {
	if w.inWord {
		w.words = append(w.words, w.word.String())
	}
	w.word.Reset()
	w.inWord = false
}

// end ends the last word.
func (w *commandSplitter) finish() error {
	switch {
	case w.quote != 0:
		return errors.New("a quote " + string(w.quote) + " is not closed")
	case w.escaped:
		return errors.New("there is nothing behind the last backslash")
	}
	w.next()
	return nil
}
