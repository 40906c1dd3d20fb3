package cli

import (
	"net/netip"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// watchRecord is what happened to a gateway, in JSON.
type watchRecord struct {
	Event     string      `json:"event"` // gateway, address, restarted, announced, address_changed or error
	Time      string      `json:"time"`
	Gateway   string      `json:"gateway"`
	Interface string      `json:"interface,omitempty"`
	Local     string      `json:"local,omitempty"`
	Protocols []string    `json:"protocols,omitempty"` // of a gateway that answered
	Backend   string      `json:"backend,omitempty"`   // that told
	IP        *netip.Addr `json:"ip,omitempty"`        // the external address
	Scope     string      `json:"scope,omitempty"`
	Previous  string      `json:"previous,omitempty"`
	Reason    string      `json:"reason,omitempty"`
	Kind      string      `json:"kind,omitempty"`
	Next      string      `json:"next_try,omitempty"`
}

// say is something that happened: an object, or a line.
func (w *watchSession) print(r watchRecord, text string) {
	now := time.Now()
	if w.app.settings.json {
		r.Time = jsonTime(now)
		w.app.printJSON(r)
		return
	}
	w.app.resultf("%s %s %s\n", clockText(now), strings.ReplaceAll(r.Event, "_", " "), text)
}

// sayGateway tells the way out and, where it was asked, what it answers.
func (w *watchSession) printGateway(answers []availableBackend) {
	r := watchRecord{
		Event: "gateway", Gateway: endpointText(w.route.gateway), Interface: w.route.iface, Local: addrText(w.route.local), Reason: w.route.reason,
	}
	var titles []string
	for _, b := range answers {
		r.Protocols = append(r.Protocols, b.name)
		titles = append(titles, b.title)
	}
	text := w.route.text()
	if len(titles) > 0 {
		text += " speaks " + joinNames(titles)
	}
	w.print(r, text)
}

// addressed adds the external address, where it is known.
func (r watchRecord) withAddress(addr netip.Addr) watchRecord {
	if addr.IsValid() {
		r.IP, r.Scope = &addr, backends.ScopeOf(addr).String()
	}
	return r
}

// sayAddress tells the external address.
func (w *watchSession) printAddress(b availableBackend, addr netip.Addr) {
	w.external = addr
	w.print(watchRecord{Event: "address", Gateway: endpointText(b.gateway), Backend: b.name}.withAddress(addr),
		addrText(addr)+", by "+b.title)
}

// sayChange tells of a change. Where several notice that the address is another,
// the first tells.
func (w *watchSession) printChange(n observedChange) {
	c, before := n.change, w.external
	if c.External.IsValid() {
		w.external = c.External
	}
	moved := before.IsValid() && w.external != before
	if c.Kind == backends.AddressChanged && !moved {
		return
	}
	r := watchRecord{
		Event:   strings.ReplaceAll(c.Kind.String(), " ", "_"),
		Gateway: endpointText(n.by.gateway), Backend: n.by.name, Reason: c.Reason,
	}.withAddress(w.external)
	text := endpointText(n.by.gateway) + ", by " + n.by.title
	if moved {
		r.Previous = addrText(before)
		text += ": external address " + addrText(w.external) + ", was " + addrText(before)
	}
	w.print(r, text+" ("+oneLine(c.Reason)+")")
}

// sayFailure tells that the gateway is not answered for now.
func (w *watchSession) printError(err error, next time.Time) {
	text := errorText(err)
	w.print(watchRecord{
		Event: "error", Gateway: endpointText(w.route.gateway), Reason: text, Kind: classify(err).name, Next: jsonTime(next),
	}, oneLine(text)+nextAttemptText(next))
}
