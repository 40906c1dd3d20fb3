package cli

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/natforward/goforward/reach"
)

// shortestInterval is the shortest interval of --every: a measurement that fails takes longer
// than five seconds.
const shortestInterval = 10 * time.Second

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
	f.Var(&flagValue[[]via]{target: &v.via, typeName: "if:NAME|phone", parse: v.addVia}, "via",
		"connect from the internet: through this other interface, or with a phone; may be repeated")
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
	}}, "verify", "measure whether the port is reachable, also by if:NAME or phone")
	f.Lookup("verify").NoOptDefVal = viaRouter
	v.registerEvery(cmd, "with --hold --verify, measure again in this interval; at least 10 s")
	_ = cmd.RegisterFlagCompletionFunc("verify", completeVia)
}

func (v *verifyFlags) registerEvery(cmd *cobra.Command, usage string) {
	cmd.Flags().Var(&flagValue[time.Duration]{target: &v.every, typeName: "DURATION", parse: parseInterval}, "every", usage)
	_ = cmd.RegisterFlagCompletionFunc("every", cobra.NoFileCompletions)
}

// usesPhone reports whether a person is asked to open a URL.
func (v *verifyFlags) usesPhone() bool {
	return slices.ContainsFunc(v.via, func(one via) bool { return one.kind == viaPhone })
}

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
	viaInterface = "if"
	viaPhone     = "phone"
	viaRouter    = "router"
)

// via is a way to connect from the internet: a kind, and what follows its colon.
type via struct{ kind, rest string }

// errVia lists the valid values of --via.
var errVia = errors.New("want if:NAME, with the name of another interface of this host that leads to the internet, or phone")

// addVia returns the ways with one more.
func (v *verifyFlags) addVia(s string) ([]via, error) {
	kind, rest, hasRest := strings.Cut(s, ":")
	one := via{strings.ToLower(kind), rest}
	switch {
	case one.kind == viaPhone && !hasRest:
	case one.kind == viaInterface && rest != "":
	default:
		return nil, errVia
	}
	if slices.Contains(v.via, one) {
		return v.via, nil
	}
	return append(slices.Clone(v.via), one), nil
}

// checkVia returns an error if --via names an interface that is not another uplink of this host.
func (a *app) checkVia(all []via) error {
	for _, one := range all {
		if one.kind != viaInterface {
			continue
		}
		ifi, err := net.InterfaceByName(one.rest)
		text := "no such interface"
		switch {
		case err != nil:
		case ifi.Flags&net.FlagLoopback != 0:
			text = "it does not lead to the internet"
		case one.rest == a.currentRoute(&a.settings).iface:
			text = "it leads to the gateway itself"
		default:
			continue
		}
		advice := "this host has no other interface with a default route"
		if names := a.otherUplinks(); len(names) > 0 {
			advice = "other interfaces with a default route: " + joinNames(names)
		}
		return &usageError{text: fmt.Sprintf("--via if:%s: %s", one.rest, text), advice: advice}
	}
	return nil
}

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

// newProbers returns what measures: the router, and what --via names.
func (a *app) newProbers(v *verifyFlags) (all []reach.Prober) {
	for _, one := range v.via {
		switch one.kind {
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
func completeVia(cmd *cobra.Command, args []string, prefix string) (values []cobra.Completion, _ cobra.ShellCompDirective) {
	values = append(values, viaPhone)
	names, _ := completeInterfaces(cmd, args, prefix)
	for _, name := range names {
		values = append(values, viaInterface+":"+name)
	}
	return values, cobra.ShellCompDirectiveNoFileComp
}
