package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/netbind"
)

// arrow starts the last line of an error: the step that most likely helps.
const arrow = "\n  → "

// errorText returns the text of an error for people, with the names of the flags in place of
// those of the library, and with the hint for this command line as its last line.
func (a *app) errorText(err error) string {
	text := err.Error()
	if hint := a.hint(err); hint != "" {
		if e := (*forward.Error)(nil); errors.As(err, &e) && e.Advice != "" {
			text = strings.TrimSuffix(text, arrow+e.Advice)
		}
		text += arrow + hint
	}
	return libraryText(text)
}

// failure is an error of the command, and the facts on which its hint depends.
type failure struct {
	err  error
	kind string // as in JSON
	app  *app
}

// is reports whether the failure is of a command.
func (f *failure) is(command string) bool {
	return f.app.command == command || command == "map" && f.app.command == "run"
}

// isSilent reports whether the gateway did not reply to any request.
func (f *failure) isSilent() bool {
	var e *forward.Error
	return (f.kind == "no_reply" || f.kind == "no_gateway") && errors.As(f.err, &e)
}

// isFar reports whether the named gateway is not on a network of this host, so that requests
// pass another router first.
func (f *failure) isFar() bool {
	named := f.app.settings.namedGateway().Addr()
	if !f.isSilent() || !named.IsValid() {
		return false
	}
	g, err := f.app.routeTo(named)
	return err == nil && g.Addr.IsValid()
}

// isThisHost reports whether the named gateway is an address of this host.
func (f *failure) isThisHost() bool {
	named := f.app.settings.namedGateway().Addr()
	return f.isUnreachable() && isOwnAddress(named)
}

// isUnreachable reports whether this host has no route to the named gateway. Test gateways have
// loopback addresses.
func (f *failure) isUnreachable() bool {
	named := f.app.settings.namedGateway().Addr()
	if !f.isSilent() || !named.IsValid() || named.IsLoopback() {
		return false
	}
	_, err := f.app.routeTo(named)
	return errors.Is(err, discover.ErrNoRoute)
}

// hasDevice reports whether a UPnP device answered a request for a mapping.
func (f *failure) hasDevice() bool {
	var e *forward.Error
	return errors.As(f.err, &e) && slices.ContainsFunc(e.Attempts, func(err error) bool {
		return strings.HasPrefix(err.Error(), upnp.Name+": ") && !errors.Is(err, backends.ErrNoReply) && !errors.Is(err, backends.ErrUnsupported)
	})
}

// isFullDevice and isTaken report whether map failed because of the mappings of a UPnP device,
// which goforward list shows.
func (f *failure) isFullDevice() bool {
	return f.is("map") && f.kind == "no_resources" && f.hasDevice()
}

func (f *failure) isTaken() bool {
	return f.is("map") && f.kind == "conflict" && f.app.spec != nil && f.app.spec.exact && f.hasDevice()
}

// hasFault returns a condition: a UPnP device refused a mapping with this code.
func hasFault(code upnp.FaultCode) func(*failure) bool {
	return func(f *failure) bool {
		var fault *upnp.Fault
		return f.is("map") && f.kind == "unsupported" && errors.As(f.err, &fault) && fault.Code == code
	}
}

// isKind returns a condition: the command fails with an error of this kind.
func isKind(command, kind string) func(*failure) bool {
	return func(f *failure) bool { return f.kind == kind && (command == "" || f.is(command)) }
}

const tryAgain = "try again; if the gateway is slow, increase --timeout"

// betterHints are hints that need the flags or the network of this host, or name another
// command. They replace the advice of the library. The first one that applies counts.
var betterHints = []struct {
	when func(*failure) bool
	hint string
}{
	{(*failure).isThisHost, "{gateway} is an address of this host: name the router; goforward gateways shows the gateways of this host"},
	{(*failure).isUnreachable, "this host has no route to {gateway}: connect it to the network of that gateway"},
	{(*failure).isFar, "{gateway} is not on a network of this host, and most gateways answer only hosts of their own network: goforward gateways shows the gateways of this host"},
	{hasFault(upnp.SamePortValuesRequired), "request equal external and internal ports, as in goforward map 9000"},
	{hasFault(upnp.WildCardNotPermittedInSrcIP), "name the peer with --from: the gateway admits only one"},
	{(*failure).isFullDevice, "goforward list shows the mappings of the gateway, and goforward unmap deletes those that are not needed"},
	{(*failure).isTaken, "request another external port, or omit --exact; goforward list shows which host has the port"},
}

// plainHints are the hints for errors without advice.
var plainHints = []struct {
	when func(*failure) bool
	hint string
}{
	{(*failure).isWaiting, ""},
	{isKind("", "interrupted"), ""},
	{isKind("", "not_unmapped"), "the mapping ends with its lifetime, or goforward unmap deletes it"},
	{isKind("unmap", "no_reply"), "the mapping may still exist: " + tryAgain},
	{isKind("unmap", "not_authorized"), "delete the mapping in the gateway's settings"},
	{(*failure).needsList, "switch on UPnP in the gateway's settings, or run goforward unmap on that host"},
	{isKind("unmap", "unsupported"), "unmap accepts the flags with which map created the mapping; switch on that protocol in the gateway's settings"},
	{isKind("unmap", "no_resources"), "try again, or delete the mapping in the gateway's settings"},
	{isKind("list", "not_authorized"), "allow this device to read the mappings in the gateway's settings, or look at its web interface"},
	{isKind("list", "no_reply"), tryAgain},
	{isKind("list", "malformed"), "look at the gateway's web interface, or update its firmware"},
	{(*failure).needsPort, "name a port, as in goforward map 5000/sctp"},
	{isKind("", "no_reply"), tryAgain},
	{isKind("", "no_gateway"), "connect this host to a network, or name the gateway (--gateway)"},
	{isKind("", "not_authorized"), "allow port forwarding for this device in the gateway's settings"},
	{isKind("", "network_failure"), "check the gateway's internet connection"},
	{isKind("", "malformed"), "update the gateway's firmware, or switch on another protocol in its settings"},
	{isKind("", "usage"), "goforward {command} --help"},
}

// isWaiting reports whether this host does not have the --source address at the moment.
func (f *failure) isWaiting() bool { return errors.Is(f.err, netbind.ErrNotHere) }

// needsList reports whether unmap needs the gateway's table, and the gateway cannot list it.
func (f *failure) needsList() bool {
	return f.is("unmap") && f.kind == "unsupported" && f.app.spec != nil && f.app.spec.to.IsValid()
}

// needsPort reports whether map cannot choose a free port, because no socket can hold one.
func (f *failure) needsPort() bool {
	return f.is("map") && f.kind == "unsupported" && f.app.spec != nil && f.app.spec.internal == 0
}

// hint returns the last line for an error, or "" to leave the one that it has.
func (a *app) hint(err error) string {
	f := &failure{err: err, kind: classify(err).name, app: a}
	hints := betterHints
	if !strings.Contains(err.Error(), arrow) {
		hints = append(slices.Clone(betterHints), plainHints...)
	} else if e := (*forward.Error)(nil); !errors.As(err, &e) || !strings.HasSuffix(err.Error(), e.Advice) {
		return ""
	}
	for _, h := range hints {
		if h.when(f) {
			return strings.NewReplacer("{gateway}", addrText(a.settings.namedGateway().Addr()), "{command}", a.command).Replace(h.hint)
		}
	}
	return ""
}

// flagNames replaces the names of options and fields of the library by those of the flags.
var flagNames = strings.NewReplacer(
	"Config.DiscoveryTimeout", "--timeout",
	"Config.Gateway", "--gateway",
	"Config.Interface", "--interface",
	"Config.Protocols", "--backend",
	"Config.RequestTimeout", "--timeout",
	"Config.Source", "--source",
	"Config.UPnPURL", "--igd-url",
	"the option Exact", "--exact",
	"the option From", "--from",
	"the option IPv6", "--ipv6",
	"the option Lifetime(Forever)", "--lifetime forever",
	"the option SamePort", "--same-port",
)

// packagePrefix matches the names of packages that are not names of protocols, as a prefix of
// a text or of a part of it.
var packagePrefix = regexp.MustCompile(`(^|: |\n *)(?:(?:forward|discover|ssdp|invalid request): )+`)

// libraryText returns a text of the library for people. It replaces the names of options, and
// removes the names of packages, and the name of a protocol if the line already has it.
func libraryText(text string) string {
	text = packagePrefix.ReplaceAllString(flagNames.Replace(text), "$1")
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		for _, name := range protocolNames(protocols) {
			if first := strings.Index(line, name+": "); first >= 0 {
				first += len(name) + 2
				line = line[:first] + strings.ReplaceAll(line[first:], " "+name+": ", " ")
			}
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}

// checkInterface returns an error if this host cannot send requests from the --interface.
func (s *settings) checkInterface() error {
	if s.iface == "" {
		return nil
	}
	ifi, err := net.InterfaceByName(s.iface)
	if err != nil {
		advice := "this host has no network interface"
		if names := interfaces(func(net.Interface) bool { return true }); names != "" {
			advice = "the interfaces of this host: " + names
		}
		return &usageError{text: fmt.Sprintf("--interface %s: no such interface", s.iface), advice: advice}
	}
	if ifi.Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: the interface %s is down%sswitch it on%s", forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	if addrs, err := ifi.Addrs(); err == nil && len(addrs) == 0 {
		return fmt.Errorf("%w: the interface %s has no address%sconnect it to a network%s", forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	return nil
}

// otherThan recommends the other interfaces that are up, or returns "".
func otherThan(name string) string {
	names := interfaces(func(ifi net.Interface) bool { return ifi.Name != name && ifi.Flags&net.FlagUp != 0 })
	if names == "" {
		return ""
	}
	return ", or use another interface: " + names
}

// interfaces returns the names of interfaces of this host, for people. It omits loopback.
func interfaces(include func(net.Interface) bool) string {
	var names []string
	all, _ := net.Interfaces() // after an error, none is recommended
	for _, ifi := range all {
		if ifi.Flags&net.FlagLoopback == 0 && include(ifi) {
			names = append(names, ifi.Name)
		}
	}
	return joinNames(names)
}

// isOwnAddress reports whether an interface of this host has the address.
func isOwnAddress(addr netip.Addr) bool {
	addrs, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == addr.WithZone("")
	})
}

// mistakes are the usual mistakes in a command line, and the hint for each. The first one that
// applies counts.
var mistakes = []func(*commandLine) string{
	(*commandLine).missingMap, (*commandLine).nearCommand,
	(*commandLine).singleDash, (*commandLine).portFlag, (*commandLine).nearFlag,
	(*commandLine).protocolFirst, (*commandLine).nearProtocol, (*commandLine).severalPorts, (*commandLine).halfPair, (*commandLine).portRange, (*commandLine).lifetimeZero,
}

// commandLine is an invalid command line.
type commandLine struct {
	root, cmd *cobra.Command
	args      []string // without the name of the command
	text      string   // of the error
}

// explainUsage adds what the user most likely meant to a usage error.
func explainUsage(root *cobra.Command, args []string, usage *usageError) {
	cmd, rest, err := root.Find(args)
	if err != nil {
		cmd, rest = root, args
	}
	if usage.command = cmd.CommandPath(); cmd.Name() == "help" {
		usage.command = root.CommandPath()
	}
	c := &commandLine{root: root, cmd: cmd, args: rest, text: usage.text}
	usage.text, _, _ = strings.Cut(usage.text, "\n") // cobra adds its own suggestions
	if c.unknownCommand() != "" && cmd != root && !cmd.HasSubCommands() && cmd.Name() != "help" {
		usage.text = cmd.Name() + " takes no arguments"
		return
	}
	for _, find := range mistakes {
		if hint := find(c); usage.advice == "" {
			usage.advice = hint
		}
	}
}

// argument returns the first argument that is neither a flag nor the value of a flag.
func (c *commandLine) argument() string {
	skip := false
	for _, arg := range c.args {
		switch {
		case skip:
			skip = false
		case strings.HasPrefix(arg, "-"):
			skip = c.takesNext(arg)
		default:
			return arg
		}
	}
	return ""
}

// takesNext reports whether the argument after a flag is its value.
func (c *commandLine) takesNext(arg string) bool {
	f := c.cmd.Flags().Lookup(strings.TrimPrefix(arg, "--"))
	if len(arg) == 2 && arg != "--" {
		f = c.cmd.Flags().ShorthandLookup(arg[1:])
	}
	return f != nil && f.NoOptDefVal == ""
}

var unknownCommand = regexp.MustCompile(`^(?:unknown command|no command or help topic) ("(?:[^"\\]|\\.)*")`)

// unknownCommand returns the name of the unknown command that the error is about, or "".
func (c *commandLine) unknownCommand() string {
	m := unknownCommand.FindStringSubmatch(c.text)
	if m == nil {
		return ""
	}
	name, _ := strconv.Unquote(m[1])
	return name
}

// missingMap recognizes ports without a command.
func (c *commandLine) missingMap() string {
	name := c.unknownCommand()
	if _, err := parsePortArg(name); err != nil {
		return ""
	}
	return "goforward map " + name
}

// nearCommand recognizes a misspelled command.
func (c *commandLine) nearCommand() string {
	var names []string
	for _, cmd := range c.root.Commands() {
		if !cmd.Hidden {
			names = append(names, cmd.Name())
		}
	}
	if near := nearest(c.unknownCommand(), names); near != "" {
		return "did you mean goforward " + near + "?"
	}
	return ""
}

// flags returns the names of the flags of the command.
func (c *commandLine) flags() (names []string) {
	for _, set := range []*pflag.FlagSet{c.cmd.NonInheritedFlags(), c.cmd.InheritedFlags()} {
		set.VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
	}
	return names
}

// singleDash recognizes a long flag with one dash, and a negative number.
func (c *commandLine) singleDash() string {
	if !strings.HasPrefix(c.text, "unknown shorthand flag: ") {
		return ""
	}
	for _, arg := range c.args {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		switch _, err := strconv.Atoi(arg); {
		case err == nil && strings.HasPrefix(arg, "-"):
			return portRangeText
		case "-"+name != arg && !strings.HasPrefix(arg, "-"+name+"="), strings.HasPrefix(name, "-"), len(name) < 2:
		case slices.Contains(c.flags(), name):
			return "did you mean --" + name + "?"
		}
	}
	return ""
}

var unknownFlag = regexp.MustCompile(`^unknown flag: --(\S+)`)

// portFlag recognizes flags for what is an argument, or the value of another flag.
func (c *commandLine) portFlag() string {
	m := unknownFlag.FindStringSubmatch(c.text)
	if m == nil || c.cmd.Name() != "map" && c.cmd.Name() != "unmap" {
		return ""
	}
	switch m[1] {
	case "port", "ports", "internal", "external", "internal-port", "external-port":
		port := cmp.Or(c.argument(), "8080")
		if _, err := parsePortArg(port); err != nil {
			port = "8080"
		}
		return fmt.Sprintf("ports need no flag: goforward %s %s", c.cmd.Name(), port)
	case "tcp", "both", "sctp":
		return "did you mean -p " + m[1] + "?"
	}
	return ""
}

// nearFlag recognizes a misspelled flag.
func (c *commandLine) nearFlag() string {
	if m := unknownFlag.FindStringSubmatch(c.text); m != nil {
		if near := nearest(m[1], c.flags()); near != "" {
			return "did you mean --" + near + "?"
		}
	}
	return ""
}

// isPort reports whether the error may concern the ports of map or unmap.
func (c *commandLine) isPort() bool {
	return (c.cmd.Name() == "map" || c.cmd.Name() == "unmap") && strings.Contains(c.text, "port")
}

// protocolFirst recognizes tcp/8080.
func (c *commandLine) protocolFirst() string {
	name, port, both := strings.Cut(c.argument(), "/")
	if _, err := parsePortArg(port + "/" + name); both && err == nil && (c.isPort() || strings.Contains(c.text, "protocol")) {
		return fmt.Sprintf("did you mean goforward %s %s/%s?", c.cmd.Name(), port, name)
	}
	return ""
}

var unknownProtocol = regexp.MustCompile(`no protocol "([a-z]+)": `)

// nearProtocol recognizes a misspelled protocol.
func (c *commandLine) nearProtocol() string {
	if m := unknownProtocol.FindStringSubmatch(c.text); m != nil {
		if near := nearest(m[1], []string{"tcp", "udp", "both", "sctp", "dccp", "udplite"}); near != "" {
			return "did you mean " + near + "?"
		}
	}
	return ""
}

// severalPorts recognizes a list of ports with commas.
func (c *commandLine) severalPorts() string {
	list := strings.ReplaceAll(c.argument(), ",", " ")
	if _, err := parsePortArgs(strings.Fields(list)); err != nil || list == c.argument() || !c.isPort() {
		return ""
	}
	return fmt.Sprintf("separate ports by spaces: goforward %s %s", c.cmd.Name(), list)
}

// halfPair recognizes 8080: and :8080.
func (c *commandLine) halfPair() string {
	arg := c.argument()
	port := strings.Replace(arg, ":", "", 1)
	if _, err := parsePortArg(port); c.isPort() && port != arg && err == nil && (strings.HasPrefix(arg, ":") || !strings.ContainsAny(arg[strings.Index(arg, ":"):], "0123456789")) {
		return fmt.Sprintf("did you mean goforward %s %s?", c.cmd.Name(), port)
	}
	return ""
}

const portRangeText = "ports are numbers from 1 to 65535"

// portRange recognizes port 0, and numbers that are too large.
func (c *commandLine) portRange() string {
	number, _, _ := strings.Cut(c.argument(), "/")
	_, internal, both := strings.Cut(number, ":")
	if !both {
		internal = number
	}
	n, err := strconv.Atoi(internal)
	switch {
	case !c.isPort() || err != nil:
		return ""
	case n == 0 && c.cmd.Name() == "map":
		return "name a port from 1 to 65535, or none: goforward map uses one that is free"
	}
	if n >= 1 && n <= math.MaxUint16 {
		return ""
	}
	return portRangeText
}

// lifetimeZero recognizes a lifetime of 0, which deletes a mapping on the wire.
func (c *commandLine) lifetimeZero() string {
	if !strings.Contains(c.text, "to delete a mapping, use goforward unmap") {
		return ""
	}
	if _, err := parsePortArg(c.argument()); err != nil {
		return "goforward unmap deletes a mapping"
	}
	return "goforward unmap " + c.argument()
}

// nearest returns the name that a misspelled name most likely means, or "".
func nearest(name string, names []string) string {
	best, found := 3, ""
	if len(name) > 32 {
		return ""
	}
	for _, n := range names {
		switch d := editDistance(name, n); {
		case d < best && d < len(n)-1:
			best, found = d, n
		case len(name) > 2 && strings.HasPrefix(n, name) && found == "":
			found = n
		}
	}
	return found
}

// editDistance returns the number of insertions, deletions, replacements and swaps of
// neighbors that make b of a.
func editDistance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// noRouteError is the error of gateways if there is no default route.
func (s *settings) noRouteError() error {
	if s.iface != "" {
		return fmt.Errorf("%w: there is no default route through %s%sname the gateway (--gateway)%s",
			forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	return fmt.Errorf("%w: there is no default route%sconnect this host to a network, or name the gateway (--gateway)", forward.ErrNoGateway, arrow)
}
