package reflector

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// TestTargetIsSource checks that the reflector connects only to the source of the request, and that
// no header, URL or field of the body names another target.
func TestTargetIsSource(t *testing.T) {
	absolute := post(body(tcpProbe(80)))
	absolute.URL.Scheme, absolute.URL.Host, absolute.Host, absolute.RequestURI = "http", other, other, "http://"+other+dialback.ProbePath
	query := post(body(tcpProbe(80)))
	query.URL.RawQuery = "address=" + other + "&host=" + other + "&ip=" + other
	host := post(body(tcpProbe(80)))
	host.Host = other
	fields := `,"address":"` + other + `","host":"` + other + `","to":"` + other + `:80","from":"` + other + `:80"}`
	for name, r := range map[string]*http.Request{
		"X-Forwarded-For":  post(body(tcpProbe(80)), "X-Forwarded-For", other),
		"Forwarded":        post(body(tcpProbe(80)), "Forwarded", "for="+other+";host="+other),
		"X-Real-IP":        post(body(tcpProbe(80)), "X-Real-IP", other, "X-Client-IP", other, "True-Client-IP", other, "CF-Connecting-IP", other),
		"Via":              post(body(tcpProbe(80)), "Via", "1.1 "+other, "Referer", "http://"+other+"/"),
		"Host":             host,
		"absolute URL":     absolute,
		"query":            query,
		"fields of probe":  post(body(strings.TrimSuffix(tcpProbe(80), "}") + fields)),
		"fields of body":   post(strings.TrimSuffix(body(tcpProbe(80)), "}") + fields),
		"IPv4-mapped":      from(post(body(tcpProbe(80))), "::ffff:"+requester),
		"UDP":              post(body(probeOf("udp", 80)), "X-Forwarded-For", other),
		"without anything": post(body(tcpProbe(80))),
	} {
		var to []netip.AddrPort
		h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			to = append(to, c.To)
			return echo(c, ctx, announce)
		})
		w := serve(h, r)
		got := lines(t, w.Body)
		if w.Code != http.StatusOK || len(got) != 2 || !slices.Equal(to, []netip.AddrPort{netip.MustParseAddrPort(requester + ":80")}) {
			t.Errorf("%s: status %d, connected to %v, lines %v", name, w.Code, to, got)
			continue
		}
		for _, line := range got {
			if line.Address.String() != requester {
				t.Errorf("%s: the address of a line is %v", name, line.Address)
			}
		}
	}
}

// TestForwardedFor checks from which field the address is taken if the peer is a trusted proxy.
func TestForwardedFor(t *testing.T) {
	h := newHandler(t, Config{TrustProxy: prefixes("10.0.0.0/8", "fd00::/8", "45.45.45.1/32")}, echo)
	for _, c := range []struct {
		peer   string
		values []string
		want   string // "" means that the request is refused with status 400
	}{
		{"10.0.0.1", []string{requester}, requester},
		{"fd00::1", []string{requester}, requester},
		{"::ffff:10.0.0.1", []string{requester}, requester},
		{"10.0.0.1", []string{other + ", " + requester}, requester}, // the first one comes from the requester
		{"10.0.0.1", []string{other, requester}, requester},
		{"10.0.0.1", []string{requester, other}, other},
		{"10.0.0.1", []string{requester + ", 10.1.1.1", "45.45.45.1,10.0.0.2"}, requester},
		{"10.0.0.1", []string{"rubbish, " + requester + ",\t10.1.1.1"}, requester},
		{"10.0.0.1", []string{"::ffff:" + requester}, requester},
		{"10.0.0.1", []string{requester + ", ::ffff:10.1.1.1"}, requester},
		{"10.0.0.1", []string{requester + ":4711"}, requester},
		{"10.0.0.1", []string{"2606:4700::9"}, "2606:4700::9"},
		{"10.0.0.1", []string{"[2606:4700::9]"}, "2606:4700::9"},
		{"10.0.0.1", []string{"[2606:4700::9]:4711"}, "2606:4700::9"},
		{other, []string{requester}, other}, // not a proxy
		{"10.0.0.1", nil, ""},
		{"10.0.0.1", []string{""}, ""},
		{"10.0.0.1", []string{requester + ","}, ""},
		{"10.0.0.1", []string{requester + ", unknown"}, ""},
		{"10.0.0.1", []string{requester + " 10.0.0.2"}, ""},
		{"10.0.0.1", []string{requester + ", 10.0.0.2, fe80::1%eth0"}, ""},
		{"10.0.0.1", []string{"2606:4700::9%1"}, ""},
		{"10.0.0.1", []string{"[" + requester + "]"}, ""},
		{"10.0.0.1", []string{"045.45.45.9"}, ""},
		{"10.0.0.1", []string{"example.com"}, ""},
		{"10.0.0.1", []string{"10.0.0.7, 10.0.0.8"}, ""}, // all are proxies
	} {
		r := from(httptest.NewRequest(http.MethodGet, dialback.AddressPath, nil), c.peer)
		r.Header["X-Forwarded-For"] = c.values
		w := serve(h, r)
		switch {
		case c.want == "":
			if text := refusalOf(t, w); w.Code != http.StatusBadRequest || !strings.Contains(text, "X-Forwarded-For") {
				t.Errorf("%s %q: %d %s", c.peer, c.values, w.Code, w.Body)
			}
		case w.Body.String() != `{"address":"`+c.want+"\"}\n":
			t.Errorf("%s %q: %d %s, want %s", c.peer, c.values, w.Code, w.Body, c.want)
		}
	}
}

// FuzzForwardedFor checks that any header results in an address without a zone that is not a proxy, or
// in an error, and that it depends only on what proxies have appended.
func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{requester, other + ", " + requester + ", 10.0.0.1", "[2606:4700::9]:80", "fe80::1%eth0", ",", "[::ffff:1.2.3.4]", "1.2.3.4:80:90"} {
		f.Add(s)
	}
	trusted := prefixes("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := forwardedFor([]string{s}, trusted)
		if err == nil && (!addr.IsValid() || addr.Zone() != "" || addr.Is4In6() || contains(trusted, addr)) {
			t.Errorf("%q: %v", s, addr)
		}
		if got, err := forwardedFor([]string{s, requester}, trusted); err != nil || got.String() != requester {
			t.Errorf("%q, then %s: %v, %v", s, requester, got, err)
		}
		if got, again := forwardedFor([]string{s, "10.0.0.1"}, trusted); got != addr || (again == nil) != (err == nil) {
			t.Errorf("%q, then a proxy: %v, %v, before %v, %v", s, got, again, addr, err)
		}
	})
}

// TestTargets checks which addresses the reflector does not connect to, and that they get their
// address nevertheless.
func TestTargets(t *testing.T) {
	config := Config{
		Allow: prefixes("10.7.0.0/16", "fd07::/16", "2002::/15", "64:ff9b::/95", "45.45.46.0/24"),
		Deny:  prefixes("45.45.47.0/24", "10.7.7.0/24", "2606:4700:dead::/48"),
	}
	const proxy = "--trust-proxy"
	for addr, reason := range map[string]string{
		"45.45.45.9": "", "8.8.8.8": "", "2606:4700::9": "", "2001:470::1": "", "::ffff:8.8.8.8": "",
		"10.7.1.1": "", "fd07::1": "", "45.45.46.1": "", // allowed, also if it is an address of this host
		"10.1.1.1": proxy, "192.168.1.1": proxy, "172.16.0.1": proxy, "127.0.0.1": proxy, "::1": proxy, "fd00::1": proxy,
		"169.254.169.254": proxy, "100.64.1.1": proxy, "0.0.0.0": proxy, "::": proxy, "224.0.0.1": proxy, "ff0e::1": proxy,
		"255.255.255.255": proxy, "192.0.2.1": proxy, "198.18.0.1": proxy, "240.0.0.1": proxy, "2001:db8::1": proxy,
		"::ffff:127.0.0.1": proxy, "::ffff:10.1.1.1": proxy,
		"fe80::1%eth0": proxy, "2606:4700::9%eth0": "does not connect", "fe80::1": proxy,
		"fec0::1": "not a public", "100::1": "not a public", "::7f00:1": "not a public", "::ffff:0:127.0.0.1": "not a public", "5f00::1": "not a public",
		"192.88.99.1": "not a public", "3fff::1": "not a public", "2001:20::1": "not a public", "4000::1": "not a public",
		"64:ff9b::7f00:1": "does not connect", "64:ff9b::808:808": "does not connect", "64:ff9b:1::1": "does not connect",
		"2002:7f00:1::1": "does not connect", "2002:808:808::1": "does not connect", "2001:0:808:808::1": "does not connect",
		"45.45.47.1": "excluded", "10.7.7.1": "excluded", "2606:4700:dead::1": "excluded", "::ffff:45.45.47.1": "excluded",
		"45.45.48.1": proxy, "2606:4700:48::1": proxy, // addresses of this host
	} {
		calls := 0
		h := newHandler(t, config, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			calls++
			return echo(c, ctx, announce)
		})
		own := prefixes("45.45.48.1/32", "2606:4700:48::1/128", "45.45.46.1/32", "127.0.0.1/32", "::1/128")
		h.isLocal = func(a netip.Addr) bool { return contains(own, a) }
		w := serve(h, from(post(body(tcpProbe(80))), addr))
		switch {
		case reason == "":
			if w.Code != http.StatusOK || calls != 1 {
				t.Errorf("%s: %d %s", addr, w.Code, w.Body)
			}
		case w.Code != http.StatusForbidden || calls != 0 || !strings.Contains(refusalOf(t, w), reason):
			t.Errorf("%s: %d %s, want %s", addr, w.Code, w.Body, reason)
		}
		bare := netip.MustParseAddr(addr).Unmap().WithZone("").String()
		if w := serve(h, from(httptest.NewRequest(http.MethodGet, dialback.AddressPath, nil), addr)); w.Body.String() != `{"address":"`+bare+"\"}\n" {
			t.Errorf("%s: the address is %d %s", addr, w.Code, w.Body)
		}
	}
}

// TestTargetBehindProxy checks that the rules hold for an address that a proxy reports.
func TestTargetBehindProxy(t *testing.T) {
	h := newHandler(t, Config{TrustProxy: prefixes("127.0.0.1/32")}, nil) // a call would fail
	for _, addr := range []string{"127.0.0.2", "10.0.0.1", "::1", "::ffff:169.254.169.254", "64:ff9b::7f00:1"} {
		w := serve(h, from(post(body(tcpProbe(80)), "X-Forwarded-For", addr), "127.0.0.1"))
		if text := refusalOf(t, w); w.Code != http.StatusForbidden || strings.Contains(text, "--trust-proxy") {
			t.Errorf("%s: %d %s", addr, w.Code, text)
		}
	}
	if w := serve(h, from(post(body(tcpProbe(80))), "@")); w.Code != http.StatusBadRequest { // a Unix socket
		t.Errorf("an unknown source: %d %s", w.Code, w.Body)
	}
}

// TestOwnAddress checks that the addresses of this host are found, without a replaced function.
func TestOwnAddress(t *testing.T) {
	h := newHandler(t, Config{}, nil)
	if err := h.checkLocal(netip.MustParseAddr("127.0.0.1"), false); err == nil {
		t.Error("the reflector would connect to its own host")
	}
	if err := h.checkLocal(netip.MustParseAddr(requester), false); err != nil {
		t.Error(err)
	}
	h = newHandler(t, loopback, nil)
	if err := h.checkLocal(netip.MustParseAddr("127.0.0.1"), false); err != nil {
		t.Error(err)
	}
}
