package forward_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// choose enables a port at the gateway, with a registry of its own, as a new run of a program
// would. It returns the protocol that granted it, the names of the requests, in order, and the
// choices of the Forwarder.
func choose(t *testing.T, gw *gatewaytest.Gateway, config forward.Config) (protocol string, requests []string, choices []forward.Choice) {
	t.Helper()
	gw.ResetStats()
	before := len(gw.Requests())
	config.Gateway, config.Test.SSDP = gw.Addr(), gw.SSDP()
	config.Test.Announce, config.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:0")
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	noJitter := func(time.Duration) time.Duration { return 0 }
	f.SetRegistry(forward.NewRegistry(noJitter), noJitter)
	if got := f.Choices(); got != nil {
		t.Errorf("Choices before the first call: %v", got)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	protocol = m.Backend()
	for _, q := range gw.Requests()[before:] {
		requests = append(requests, q.Name())
	}
	choices = f.Choices()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := f.Choices(); got != nil {
		t.Errorf("Choices after Close: %v", got)
	}
	return protocol, requests, choices
}

// TestChoices checks that the next run of a program, with the choices of the previous one,
// sends its first request by the protocol that the gateway supports.
func TestChoices(t *testing.T) {
	for name, router := range map[string]gatewaytest.Config{
		"natpmp": {Protocols: []string{"natpmp"}},
		"pcp":    {Protocols: []string{"pcp"}},
		"upnp":   {Protocols: []string{"upnp"}},
	} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, router)
			protocol, _, choices := choose(t, gw, forward.Config{})
			want := []forward.Choice{{Gateway: gw.Addr(), Protocol: name}}
			if name == "upnp" {
				want[0].URL = gw.UPnP().DescriptionURL()
			}
			if protocol != name || !cmp.Equal(choices, want, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) {
				t.Fatalf("granted by %s, choices %v, want %v", protocol, choices, want)
			}
			text, err := json.Marshal(choices)
			if err != nil {
				t.Fatal(err)
			}
			var decoded []forward.Choice
			if err := json.Unmarshal(text, &decoded); err != nil || !slices.Equal(decoded, choices) {
				t.Fatalf("%s: %v, %v", text, decoded, err)
			}
			first := map[string]string{"natpmp": "natpmp external address", "pcp": "pcp announce", "upnp": "upnp describe"}[name]
			isFirst := false
			for attempt := 0; attempt < 20 && !isFirst; attempt++ { // if this machine is busy, others can be first
				protocol, requests, again := choose(t, gw, forward.Config{Choices: decoded})
				if isFirst = requests[0] == first; protocol != name || !slices.Equal(again, choices) {
					t.Errorf("granted by %s, choices %v", protocol, again)
				}
			}
			if !isFirst {
				t.Errorf("%q is not the first request", first)
			}
		})
	}
}

// TestChoicesOutdated checks that choices that no longer apply do not prevent a mapping, and
// that Protocols and Backends decide.
func TestChoicesOutdated(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	for name, test := range map[string]struct {
		choice    forward.Choice
		protocols []string
		want      string
	}{
		"not in Protocols":          {forward.Choice{Gateway: gw.Addr(), Protocol: "pcp"}, []string{"natpmp"}, "natpmp"},
		"a URL of another host":     {forward.Choice{Gateway: gw.Addr(), Protocol: "upnp", URL: "http://127.99.0.1:9/"}, []string{"upnp"}, "upnp"},
		"a URL that does not exist": {forward.Choice{Gateway: gw.Addr(), Protocol: "upnp", URL: "http://" + gw.Addr().Addr().String() + ":9/"}, []string{"upnp"}, "upnp"},
	} {
		t.Run(name, func(t *testing.T) {
			if protocol, _, _ := choose(t, gw, forward.Config{Choices: []forward.Choice{test.choice}, Protocols: test.protocols}); protocol != test.want {
				t.Errorf("granted by %s, want %s", protocol, test.want)
			}
		})
	}
	t.Run("a protocol that the gateway no longer supports", func(t *testing.T) {
		gw := startGateway(t, gatewaytest.Config{Protocols: []string{"upnp"}})
		if protocol, _, _ := choose(t, gw, forward.Config{Choices: []forward.Choice{{Gateway: gw.Addr(), Protocol: "pcp"}}}); protocol != "upnp" {
			t.Errorf("granted by %s", protocol)
		}
	})
	t.Run("ready-made backends", func(t *testing.T) {
		backend := newFakeGateway()
		f := newForwarder(t, forward.Config{Choices: []forward.Choice{{Gateway: gw.Addr(), Protocol: "pcp"}}}, backend)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil || f.Choices() != nil {
			t.Errorf("Enable: %v, choices %v", err, f.Choices())
		}
	})
}

// TestChoicesInvalid checks which choices New refuses.
func TestChoicesInvalid(t *testing.T) {
	gw := netip.MustParseAddrPort("192.0.2.1:0")
	for _, c := range []forward.Choice{
		{},
		{Protocol: "pcp"},
		{Gateway: gw},
		{Gateway: gw, Protocol: "igd"},
		{Gateway: netip.MustParseAddrPort("0.0.0.0:0"), Protocol: "pcp"},
		{Gateway: gw, Protocol: "upnp", URL: "https://192.0.2.1/"},
		{Gateway: gw, Protocol: "upnp", URL: "http://router/"},
	} {
		if _, err := forward.New(&forward.Config{Choices: []forward.Choice{c}}); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestProbeDatagrams checks how many datagrams reach port 5351 for a first mapping at a gateway
// that replies at once: one for each protocol, and the request for the mapping. Requests are
// repeated if this machine is so busy that a reply takes 5 ms. That may happen in some of the
// attempts, but not in all.
func TestProbeDatagrams(t *testing.T) {
	for name, router := range map[string]gatewaytest.Config{
		"NAT-PMP and PCP":               {},
		"NAT-PMP":                       {Protocols: []string{"natpmp"}},
		"PCP":                           {Protocols: []string{"pcp"}},
		"PCP, NAT-PMP with short reply": {Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			fewest := 100
			for attempt := 0; attempt < 20 && fewest > 3; attempt++ {
				gw := startGateway(t, router)
				_, requests, _ := choose(t, gw, forward.Config{})
				isDatagram := func(name string) bool { return strings.HasPrefix(name, "natpmp ") || strings.HasPrefix(name, "pcp ") }
				fewest = min(fewest, len(requests)-len(slices.DeleteFunc(requests, isDatagram)))
			}
			if fewest != 3 {
				t.Errorf("%d datagrams, want 3", fewest)
			}
		})
	}
}
