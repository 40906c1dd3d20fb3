package cli

import (
	"errors"
	"slices"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lazyregexp"
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
	return f.app.command == command || command == "map" && (f.app.command == "run" || f.app.command == "verify")
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
var packagePrefix = lazyregexp.New(`(^|: |\n *)(?:(?:forward|discover|ssdp|reach|invalid request): )+`)

// libraryText returns a text of the library for people. It replaces the names of options, and
// removes the names of packages, and the name of a protocol if the line already has it.
func libraryText(text string) string {
	text = packagePrefix().ReplaceAllString(flagNames.Replace(text), "$1")
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
