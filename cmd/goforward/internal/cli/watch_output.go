package cli

import (
	"net/netip"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// watchRecord is an event of a gateway, or a failed attempt to find one, in JSON.
type watchRecord struct {
	Event     string      `json:"event"` // gateway, address, restarted, announced, address_changed or error
	Time      string      `json:"time"`
	Gateway   string      `json:"gateway"`
	Interface string      `json:"interface,omitempty"`
	Local     string      `json:"local,omitempty"`
	Protocols []string    `json:"protocols,omitempty"` // the supported protocols
	Backend   string      `json:"backend,omitempty"`   // the backend that observed it
	IP        *netip.Addr `json:"ip,omitempty"`        // the external address
	Scope     string      `json:"scope,omitempty"`
	Previous  string      `json:"previous,omitempty"`
	Reason    string      `json:"reason,omitempty"`
	Kind      string      `json:"kind,omitempty"`
	Next      string      `json:"next_try,omitempty"`
}

// print prints an event as an object or as a line, and posts it to the command of --exec. The
// command does not run for errors: most of them are repeated until the gateway replies.
func (w *watchSession) print(r watchRecord, text string) {
	now := time.Now()
	if w.app.settings.json {
		r.Time = jsonTime(now)
		w.app.printJSON(r)
	} else {
		w.app.resultf("%s %s %s\n", clockText(now), eventText(r.Event), text)
	}
	if w.exec != nil && r.Event != "error" {
		w.exec.post(execEvent{name: r.Event, environment: w.environment(r)})
	}
}

// eventText formats the name of an event for people.
func eventText(name string) string { return strings.ReplaceAll(name, "_", " ") }

// printGateway prints the route and the available backends, if they are known.
func (w *watchSession) printGateway(available []availableBackend) {
	r := watchRecord{
		Event: "gateway", Gateway: endpointText(w.route.gateway), Interface: w.route.iface, Local: addrText(w.route.local), Reason: w.route.reason,
	}
	var titles []string
	for _, b := range available {
		r.Protocols = append(r.Protocols, b.name)
		titles = append(titles, b.title)
	}
	text := w.route.text()
	w.protocols, w.failure = r.Protocols, ""
	if len(titles) > 0 {
		text += " supports " + joinNames(titles)
	}
	w.print(r, text)
}

// withAddress adds the external address, if it is valid.
func (r watchRecord) withAddress(addr netip.Addr) watchRecord {
	if addr.IsValid() {
		r.IP, r.Scope = &addr, backends.ScopeOf(addr).String()
	}
	return r
}

// printAddress prints the external address.
func (w *watchSession) printAddress(b availableBackend, addr netip.Addr) {
	w.external = addr
	w.print(watchRecord{Event: "address", Gateway: endpointText(b.gateway), Backend: b.name}.withAddress(addr),
		addrText(addr)+", by "+b.title)
}

// Each backend observes a change, and gateways announce it repeatedly. mergeInterval is how
// long a restart does not count as another change, and repeatInterval is how long an
// announcement does not (RFC 6886, section 3.2.1: ten times, with intervals that double from
// 250 ms).
const (
	mergeInterval  = 5 * time.Second
	repeatInterval = 130 * time.Second
)

// printChange prints a change once, even if several backends observe it. A restart with
// another external address is printed as an address change. A restart is printed even if
// another backend has just observed only an announcement.
func (w *watchSession) printChange(observed observedChange) {
	c, previous := observed.change, w.external
	if c.External.IsValid() {
		w.external = c.External
	}
	changed := previous.IsValid() && w.external != previous
	sinceLast := time.Since(w.changed)
	isSame := sinceLast < mergeInterval && (c.Kind != backends.Restarted || w.kind != backends.Announced)
	switch {
	case changed && c.Kind != backends.AddressChanged:
		c.Kind, c.Reason = backends.AddressChanged, otherAddress
	case !changed && (c.Kind == backends.AddressChanged || isSame || c.Kind == backends.Announced && sinceLast < repeatInterval):
		return
	}
	w.changed, w.kind = time.Now(), c.Kind
	r := watchRecord{
		Event:   strings.ReplaceAll(c.Kind.String(), " ", "_"),
		Gateway: endpointText(observed.by.gateway), Backend: observed.by.name, Reason: c.Reason,
	}.withAddress(w.external)
	text := endpointText(observed.by.gateway) + ", by " + observed.by.title
	if changed {
		r.Previous = addrText(previous)
		text += ": external address " + addrText(w.external) + ", was " + addrText(previous)
	}
	w.print(r, text+" ("+oneLine(c.Reason)+")")
}

// printError prints why the gateway cannot be followed for now, and the time of the next
// attempt.
func (w *watchSession) printError(err error, next time.Time) {
	text := errorText(err)
	line := oneLine(text)
	if text == w.failure {
		line = "as before"
	}
	w.failure = text
	w.print(watchRecord{
		Event: "error", Gateway: endpointText(w.route.gateway), Reason: text, Kind: classify(err).name, Next: jsonTime(next),
	}, line+nextAttemptText(next))
}
