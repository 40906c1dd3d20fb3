package cli

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/reach"
)

// verifiedRecord is the result of a measurement in JSON.
type verifiedRecord struct {
	Event    string            `json:"event"`
	Time     string            `json:"time"`
	Protocol backends.Protocol `json:"protocol"`
	External jsonEndpoint      `json:"external"`
	Reached  jsonEndpoint      `json:"reached,omitzero"`
	Internal jsonEndpoint      `json:"internal"`
	Backend  string            `json:"backend"`
	Gateway  string            `json:"gateway"`
	Scope    backends.Scope    `json:"scope"`
	Verdict  string            `json:"verdict"`
	Proven   string            `json:"proven"`
	Reason   string            `json:"reason"`
	Evidence []evidenceRecord  `json:"evidence,omitempty"`
}

// evidenceRecord is what one method of measurement shows.
type evidenceRecord struct {
	Method   string       `json:"method"`
	Verdict  string       `json:"verdict"`
	Level    string       `json:"level"`
	Inferred bool         `json:"inferred,omitempty"`
	From     jsonEndpoint `json:"from,omitzero"`
	To       jsonEndpoint `json:"to,omitzero"`
	Time     string       `json:"time"`
	RTT      float64      `json:"rtt_ms,omitempty"`
	Detail   string       `json:"detail"`
}

// verified returns the record of a result for a mapping.
func verified(event string, m backends.Mapping, r reach.Result) verifiedRecord {
	record := verifiedRecord{
		Event: event, Time: jsonTime(resultTime(r)), Protocol: m.Protocol, External: jsonEndpointOf(m.External), Reached: jsonEndpointOf(reachedAt(m, r)), Internal: jsonEndpointOf(m.Internal),
		Backend: m.Backend, Gateway: endpointText(m.Gateway), Scope: backends.ScopeOf(m.External.Addr()),
		Verdict: r.Verdict.String(), Proven: r.Proven.String(), Reason: libraryText(r.Reason),
	}
	for _, e := range r.Evidence {
		if !isEvidenceFor(e, m) {
			continue
		}
		one := evidenceRecord{
			Method: e.Method, Verdict: e.Verdict.String(), Level: e.Level.String(), Inferred: e.Inferred,
			Time: jsonTime(e.At), RTT: float64(e.RTT.Microseconds()) / 1000, Detail: oneLine(libraryText(e.Detail)),
		}
		if e.From != (netip.AddrPort{}) { // without an arrival, To says nothing
			one.From, one.To = jsonEndpointOf(e.From), jsonEndpointOf(e.To)
		}
		record.Evidence = append(record.Evidence, one)
	}
	return record
}

// isEvidenceFor reports whether evidence is about a mapping, and not about another one of a unit.
func isEvidenceFor(e reach.Evidence, m backends.Mapping) bool {
	return e.Protocol == m.Protocol && e.External.Port() == m.External.Port()
}

// reachedAt returns the endpoint at which a mapping was reached, if that is not the external endpoint of
// the mapping: the router may not know its own address. Otherwise it returns the zero value.
func reachedAt(m backends.Mapping, r reach.Result) netip.AddrPort {
	for _, e := range r.Evidence {
		if r.Verdict != reach.Reachable || e.Verdict != reach.Reachable || e.Level != reach.LevelInternet || e.Inferred || !isEvidenceFor(e, m) {
			continue
		}
		if e.External == m.External {
			break
		}
		return e.External
	}
	return netip.AddrPort{}
}

// resultTime returns the time of a result. A result that was not measured has none.
func resultTime(r reach.Result) time.Time {
	if r.At.IsZero() {
		return time.Now()
	}
	return r.At
}

// name names the external endpoint.
func (c *portCheck) name() string {
	return fmt.Sprintf("%v %s", c.mapping.Protocol, endpointText(c.mapping.External))
}

// printVerified prints a result. A result that did not change is only printed with --json.
func (a *app) printVerified(c *portCheck, v *verifyFlags, changed bool) {
	if a.settings.json {
		a.printJSON(verified("verified", c.mapping, c.result))
	}
	if !changed {
		return
	}
	origin := "from the gateway's table"
	if c.held != nil {
		origin = "requested by this command"
	}
	if v.every != 0 {
		a.messagef("%s ", clockText(resultTime(c.result)))
	}
	if !v.ofMap {
		a.messagef("%s, by %s, %s\n", mappingText([]backends.Mapping{c.mapping}), backendText(c.mapping), origin)
	}
	a.printEvidence(c)
	if !a.settings.json {
		name := c.name()
		if at := reachedAt(c.mapping, c.result); at.IsValid() { // the endpoint to give to others
			name = fmt.Sprintf("%v %s", c.mapping.Protocol, endpointText(at))
		}
		a.resultf("%s %v\n", name, c.result.Verdict)
	}
	a.messagef("%s\n", a.verdictText(c, v))
}

// printEvidence prints a line for each method of measurement.
func (a *app) printEvidence(c *portCheck) {
	answers := map[reach.Verdict]string{reach.Reachable: "yes", reach.Unreachable: "no", reach.Unknown: "unknown"}
	width := 0
	for _, e := range c.result.Evidence {
		width = max(width, utf8.RuneCountInString(e.Method))
	}
	for _, e := range c.result.Evidence {
		detail := oneLine(libraryText(e.Detail))
		if e.Inferred {
			detail += " (measured on another port of this host)"
		}
		a.messagef("  %-*s  %-7s  %s\n", width, e.Method, answers[e.Verdict], detail)
	}
}

// verdictText explains the verdict, and says how to learn more.
func (a *app) verdictText(c *portCheck, v *verifyFlags) string {
	r := c.result
	text := upperFirst(oneLine(libraryText(r.Reason)))
	if r.Verdict == reach.Unknown && !v.usesInternet() {
		switch r.Proven {
		case reach.LevelRouter:
			text = "Proven up to your router"
		case reach.LevelLAN:
			text = "Proven from your router to this host"
		case reach.LevelListening:
			text = "Proven only that a program listens"
		}
	}
	if text != "" {
		text += "."
	}
	if r.Verdict == reach.Reachable || v.usesInternet() || r.Proven == reach.LevelInternet {
		return text
	}
	return strings.TrimSpace(text + " Access from the internet was not checked: " + a.checkAdvice(c))
}

// usesInternet reports whether the port is measured from the internet.
func (v *verifyFlags) usesInternet() bool { return len(v.via) > 0 }

// checkAdvice returns a command line that checks access from the internet, and the ways to choose from.
// A phone needs the port, so the program on it must end before. So does every way for a UDP port.
func (a *app) checkAdvice(c *portCheck) string {
	const afterStop = " while the program is stopped"
	ways, condition := []string{"ssh:HOST", "the URL of a reflector"}, ""
	if names := a.otherUplinks(); len(names) > 0 && c.mapping.External != c.mapping.Internal { // else it is a pinhole, or a host with a public address
		ways = slices.Insert(ways, 0, viaInterface+":"+names[0])
	}
	switch isFree := hasNoProgram(c.result); {
	case c.mapping.Protocol != backends.TCP:
		ways = slices.Insert(ways, 0, "stun:HOST")
		if !isFree {
			condition = afterStop
		}
	case isFree:
		ways = slices.Insert(ways, 0, viaPhone)
	default:
		ways = append(ways, viaPhone+afterStop)
	}
	last := len(ways) - 1
	return fmt.Sprintf("goforward verify %s --via %s, or %s%s", a.portArguments([]*portCheck{c}), strings.Join(ways[:last], ", "), ways[last], condition)
}

// portArguments returns the arguments of verify and unmap for ports, with the flags that select
// the gateway.
func (a *app) portArguments(checks []*portCheck) string {
	var words []string
	for _, c := range checks {
		word := fmt.Sprint(c.mapping.Internal.Port())
		if c.mapping.Protocol != backends.TCP {
			word += "/" + c.mapping.Protocol.String()
		}
		if !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	switch {
	case len(words) > maxMeasured:
		words = []string{"PORT"}
	case len(words) == 2 && isNumber(words[0]) && isNumber(words[1]): // they would be the ports of one mapping
		words[1] += "/tcp"
	}
	return strings.Join(append(words, a.gatewayArguments(checks[0].spec)...), " ")
}

// gatewayArguments returns the flags of this command line that select the gateway.
func (a *app) gatewayArguments(s *spec) (words []string) {
	if s.ipv6 && (a.settings.gateway.Addr().Is4() || !a.settings.gateway.IsValid()) {
		words = append(words, "-6")
	}
	if a.settings.gateway.IsValid() {
		words = append(words, "-g", endpointText(a.settings.gateway))
	}
	if a.settings.iface != "" {
		words = append(words, "--interface", a.settings.iface)
	}
	if a.settings.igd != "" {
		words = append(words, "--igd-url", a.settings.igd)
	}
	return words
}

// upperFirst returns a sentence with a capital letter at its start.
func upperFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return strings.ToUpper(string(r)) + s[n:]
}
