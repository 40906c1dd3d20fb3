package cli

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/natforward/goforward/internal/lazyregexp"
	"github.com/natforward/goforward/reach"
)

// shortestInterval is the shortest interval of --every: a measurement that fails takes longer
// than five seconds.
const shortestInterval = 10 * time.Second

// shortestStunInterval is the shortest interval of --every with a STUN server. More often, reach.STUN
// cannot measure.
const shortestStunInterval = 5 * time.Minute

// verifyFlags are the flags of verify, and those of map that concern a measurement.
type verifyFlags struct {
	via      []via
	every    time.Duration  // interval of the measurements; 0: measure once
	noRepair bool           // do not map a port again that is not reachable any more
	qr       bool           // draw the QR code, also if stderr is no terminal
	ofMap    bool           // map --verify is given
	probers  []reach.Prober // the same for all measurements: a prober remembers the endpoints that it reached
}

// register adds the flags to verify.
func (v *verifyFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&flagValue[[]via]{target: &v.via, typeName: "VIA", parse: v.addVia}, "via",
		"connect from the internet: URL of a reflector, ssh:HOST, stun:HOST, if:NAME or phone; may be repeated")
	v.registerEvery(cmd, "measure again in this interval, until Ctrl-C; at least 10 s")
	f.BoolVar(&v.noRepair, "no-repair", false, "with --every, do not map a port again that is not reachable any more")
	f.BoolVar(&v.qr, "qr", false, "draw the QR code for the phone, also if stderr is no terminal")
	_ = cmd.RegisterFlagCompletionFunc("via", completeVia)
}

// registerForMap adds the flags to map.
func (v *verifyFlags) registerForMap(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&flagValue[[]via]{target: &v.via, typeName: "VIA", parse: func(s string) ([]via, error) {
		v.ofMap = true
		if s == viaRouter {
			return v.via, nil
		}
		return v.addVia(s)
	}}, "verify", "measure whether the port is reachable, also by a VIA of verify")
	f.Lookup("verify").NoOptDefVal = viaRouter
	v.registerEvery(cmd, "with --hold --verify, measure again in this interval; at least 10 s")
	_ = cmd.RegisterFlagCompletionFunc("verify", completeVia)
}

func (v *verifyFlags) registerEvery(cmd *cobra.Command, usage string) {
	cmd.Flags().Var(&flagValue[time.Duration]{target: &v.every, typeName: "DURATION", parse: parseInterval}, "every", usage)
	_ = cmd.RegisterFlagCompletionFunc("every", cobra.NoFileCompletions)
}

// uses reports whether --via names a way of this kind.
func (v *verifyFlags) uses(kind string) bool {
	return slices.ContainsFunc(v.via, func(one via) bool { return one.kind == kind })
}

// isTooOften reports whether --every is too short for a STUN server.
func (v *verifyFlags) isTooOften() bool {
	return v.every != 0 && v.every < shortestStunInterval && v.uses(viaSTUN)
}

var errTooOften = usagef("a STUN server cannot measure a port so often: want --every of at least 5m")

// parseInterval reads the value of --every.
func parseInterval(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err == nil && d < shortestInterval {
		err = fmt.Errorf("want at least %v", shortestInterval)
	}
	return d, err
}

// The kinds of --via. viaRouter is the value of map --verify without a way: it adds none.
const (
	viaReflector = "reflector"
	viaSSH       = "ssh"
	viaSTUN      = "stun"
	viaInterface = "if"
	viaPhone     = "phone"
	viaRouter    = "router"
)

// via is a way to connect from the internet: a kind, and what follows its colon. For a reflector, rest
// is the whole URL.
type via struct{ kind, rest string }

// String returns the value of --via.
func (v via) String() string {
	switch v.kind {
	case viaPhone:
		return v.kind
	case viaReflector:
		return v.rest
	}
	return v.kind + ":" + v.rest
}

// tokenVariable is the environment variable that has the token of the reflectors. A token in a URL
// would be visible in the list of processes.
const tokenVariable = "GOFORWARD_REFLECTOR_TOKEN"

// The errors of --via. errVia lists the valid values.
var (
	errVia       = errors.New("want https://HOST or http://HOST of a reflector, ssh:HOST, stun:HOST, if:NAME with the name of another interface of this host, or phone")
	errReflector = errors.New("want the URL of a reflector, as in https://HOST or http://HOST:PORT, with no query")
	errSSH       = errors.New("want ssh:HOST or ssh:USER@HOST; for another port, add the host to the configuration of ssh")
	errSTUN      = errors.New("want stun:HOST or stun:HOST:PORT")
)

// addVia returns the ways with one more.
func (v *verifyFlags) addVia(s string) ([]via, error) {
	one, err := parseVia(s)
	if err != nil {
		return nil, err
	}
	if slices.Contains(v.via, one) {
		return v.via, nil
	}
	return append(slices.Clone(v.via), one), nil
}

// parseVia reads a value of --via.
func parseVia(s string) (via, error) {
	kind, rest, hasRest := strings.Cut(s, ":")
	switch kind = strings.ToLower(kind); {
	case kind == viaPhone && !hasRest:
		return via{kind, ""}, nil
	case kind == viaInterface && rest != "":
		return via{kind, rest}, nil
	case (kind == "http" || kind == "https") && hasRest:
		base, err := parseReflector(s)
		return via{viaReflector, base}, err
	case kind == viaSSH && hasRest:
		return via{kind, rest}, checkDestination(rest)
	case kind == viaSTUN && hasRest:
		return via{kind, rest}, checkServer(rest)
	}
	return via{}, errVia
}

// parseReflector reads the URL of a reflector. It removes slashes at the end.
func parseReflector(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || !isHost(u.Hostname()) || !isPortOrEmpty(u.Port()) {
		return "", errReflector
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = strings.TrimRight(u.RawPath, "/")
	return u.String(), nil
}

var (
	hostName = lazyregexp.New(`^[\p{L}\p{N}_][\p{L}\p{N}_.-]*$`)
	userName = lazyregexp.New(`^[\p{L}\p{N}_][\p{L}\p{N}_.+-]*$`)
)

// isHost reports whether a text is the IP address of a host or can be a host name. A host name does
// not begin with "-": ssh would read an option.
func isHost(s string) bool {
	if addr, err := netip.ParseAddr(s); err == nil {
		return !addr.IsUnspecified() && !addr.IsMulticast()
	}
	return hostName().MatchString(s)
}

// isPortOrEmpty reports whether a text is the number of a port, or empty.
func isPortOrEmpty(s string) bool {
	at, err := netip.ParseAddrPort("127.0.0.1:" + cmp.Or(s, "1"))
	return err == nil && at.Port() != 0
}

// checkDestination returns an error if ssh cannot connect to a text as HOST or USER@HOST.
func checkDestination(s string) error {
	user, host, hasUser := strings.Cut(s, "@")
	if !hasUser {
		host = s
	}
	if hasUser && !userName().MatchString(user) || !isHost(host) {
		return errSSH
	}
	return nil
}

// checkServer returns an error if a text is not HOST or HOST:PORT. An IPv6 address needs
// brackets if a port follows.
func checkServer(s string) error {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Is6() { // without brackets
		s = "[" + s + "]"
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil { // without a port
		host, port, err = net.SplitHostPort(s + ":1")
	}
	if err != nil || port == "" || !isHost(host) || !isPortOrEmpty(port) {
		return errSTUN
	}
	return nil
}

// checkVia returns an error if a way cannot be used: an interface that is not another uplink of this
// host, or a URL with a secret.
func (a *app) checkVia(all []via) error {
	for _, one := range all {
		switch one.kind {
		case viaInterface:
			if err := a.checkUplink(one.rest); err != nil {
				return err
			}
		case viaReflector:
			u, err := url.Parse(one.rest)
			if err != nil || u.User != nil {
				return &usageError{text: "--via: the URL of a reflector has no user name and no password", advice: "put the token of the reflector into the environment variable " + tokenVariable}
			}
			if u.Scheme == "http" && reflectorToken() != "" {
				a.messagef("--via %s: the token is sent without encryption.\n", one.rest)
			}
		}
	}
	return nil
}

// checkUplink returns an error if an interface is not another uplink of this host.
func (a *app) checkUplink(name string) error {
	ifi, err := net.InterfaceByName(name)
	text := "no such interface"
	switch {
	case err != nil:
	case ifi.Flags&net.FlagLoopback != 0:
		text = "it does not lead to the internet"
	case name == a.currentRoute(&a.settings).iface:
		text = "it leads to the gateway itself"
	default:
		return nil
	}
	advice := "this host has no other interface with a default route"
	if names := a.otherUplinks(); len(names) > 0 {
		advice = "other interfaces with a default route: " + joinNames(names)
	}
	return &usageError{text: fmt.Sprintf("--via if:%s: %s", name, text), advice: advice}
}

// reflectorToken returns the token of the reflectors, or "".
func reflectorToken() string { return strings.TrimSpace(os.Getenv(tokenVariable)) }

// otherUplinks returns the names of the interfaces that have a default route, except the one that
// leads to the gateway.
func (a *app) otherUplinks() (names []string) {
	used := a.currentRoute(&a.settings).iface
	all, _, _ := a.defaultRoutes() // after an error, none is recommended
	for _, g := range all {
		if g.Interface != "" && g.Interface != used && !slices.Contains(names, g.Interface) {
			names = append(names, g.Interface)
		}
	}
	return names
}

// newProbers returns what measures: the router, and what --via names. It is called once for
// all measurements, because a prober remembers the endpoints that were reached.
func (a *app) newProbers(v *verifyFlags) (all []reach.Prober) {
	for _, one := range v.via {
		switch one.kind {
		case viaReflector:
			all = append(all, reach.Reflector(one.rest, reach.WithToken(reflectorToken())))
		case viaSSH:
			all = append(all, reach.SSH(one.rest))
		case viaSTUN:
			all = append(all, reach.STUN(one.rest))
		case viaInterface:
			all = append(all, reach.Path(one.rest))
		case viaPhone:
			all = append(all, reach.Phone(func(url string) { a.showURL(url, v.qr) }))
		}
	}
	return append(reach.Default(), all...)
}

// showURL asks the user to open a URL on a phone.
func (a *app) showURL(url string, withQR bool) {
	text := fmt.Sprintf("Turn off the Wi-Fi of your phone, and open this URL on it within two minutes:\n\n  %s\n\n", url)
	if withQR || a.isTerminal() {
		if code, err := qr.Encode(url, qr.L); err == nil {
			text += "Or scan this code:\n\n" + drawQR(code, runtime.GOOS != "windows") + "\n"
		}
	}
	_, _ = a.stderr.Write([]byte(text)) // the URL is made here: it has no control characters
}

// quietZone is the width of the light border of a QR code, which the standard (ISO/IEC 18004)
// requires.
const quietZone = 4

// drawQR draws a QR code with two modules in each character. The light modules are drawn, also
// those of the border, so that the code is dark on light in every terminal. With color, it does
// not depend on the colors of the terminal.
func drawQR(code *qr.Code, color bool) string {
	begin, end := "", ""
	if color {
		begin, end = "\x1b[97;40m", "\x1b[0m" // bright white on black
	}
	var b strings.Builder
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		b.WriteString(begin)
		for x := -quietZone; x < code.Size+quietZone; x++ {
			upper, lower := !code.Black(x, y), !code.Black(x, y+1)
			switch {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteString(end + "\n")
	}
	return b.String()
}

// completeVia completes the values of --via.
func completeVia(cmd *cobra.Command, args []string, prefix string) (values []cobra.Completion, directive cobra.ShellCompDirective) {
	all := []string{viaPhone, viaSSH + ":", viaSTUN + ":", "https://", "http://"}
	names, _ := completeInterfaces(cmd, args, prefix)
	for _, name := range names {
		all = append(all, viaInterface+":"+name)
	}
	directive = cobra.ShellCompDirectiveNoFileComp
	for _, value := range all {
		if strings.HasPrefix(value, prefix) {
			values = append(values, value)
		}
	}
	if len(values) > 0 && !slices.ContainsFunc(values, func(s string) bool { return !strings.HasSuffix(s, ":") && !strings.HasSuffix(s, "/") }) {
		directive |= cobra.ShellCompDirectiveNoSpace // the host is still to be typed
	}
	return values, directive
}
