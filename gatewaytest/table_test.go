package gatewaytest_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

func TestAddMapping(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{TableLimit: 2})
	for _, tt := range []struct {
		name  string
		entry gatewaytest.Entry
		want  error
	}{
		{"first", otherHostEntry(backends.TCP, 80), nil},
		{"second of the same host", otherHostEntry(backends.TCP, 81), nil},
		{"table full", otherHostEntry(backends.TCP, 82), backends.ErrNoResources},
		{"no protocol", otherHostEntry(0, 80), backends.ErrInvalid},
		{"no port", otherHostEntry(backends.TCP, 0), backends.ErrInvalid},
		{"no host", gatewaytest.Entry{Protocol: backends.TCP, External: externalPort(80)}, backends.ErrInvalid},
	} {
		if err := gw.AddMapping(tt.entry); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if !gw.RemoveMapping(backends.TCP, 81) || gw.RemoveMapping(backends.TCP, 81) {
		t.Error("RemoveMapping: want true, then false")
	}
	other := otherHostEntry(backends.TCP, 80)
	other.Internal = netip.MustParseAddrPort("127.0.0.98:1")
	if err := gw.AddMapping(other); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("port taken: %v, want ErrConflict", err)
	}
}

func TestTableAndExpiry(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	h.request(mapTCP)
	want := gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"),
		External: netip.MustParseAddrPort("203.0.113.7:8080"), Remaining: 2 * time.Hour, Service: "natpmp",
	}
	if got := onlyEntry(t, gw); got.Protocol != want.Protocol || got.Internal != want.Internal ||
		got.External != want.External || got.Remaining != want.Remaining || got.Service != want.Service {
		t.Errorf("got %+v, want %+v", got, want)
	}
	gw.Advance(2*time.Hour - time.Second)
	if got := onlyEntry(t, gw).Remaining; got != time.Second {
		t.Errorf("remaining %v, want 1s", got)
	}
	h.request(mapTCP)
	if got := onlyEntry(t, gw).Remaining; got != 2*time.Hour {
		t.Errorf("after renewal: remaining %v, want 2h", got)
	}
	gw.Advance(2 * time.Hour)
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("entries after expiry: %v", all)
	}
	if got, want := gw.Stats().Epoch, (1234+4*3600-1)*time.Second; got != want {
		t.Errorf("epoch %v, want %v", got, want)
	}
}

// TestTableSharedByNATPMPAndPCP checks that NAT-PMP and PCP share one table and see each
// other's entries.
func TestTableSharedByNATPMPAndPCP(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	h.expect("0002 0000 0051 1f90 00001c20", "0082 0000 000004d2 0051 1f90 00001c20")
	if r := h.pcp(nil); r.ExternalPort != 8081 {
		t.Errorf("port %d, want 8081: NAT-PMP has 8080", r.ExternalPort)
	}
	// NAT-PMP gets the port of the PCP mapping. It can extend the lifetime, but cannot
	// delete the mapping.
	h.expect("0002 0000 1f90 0000 00000001", "0082 0000 000004d2 1f90 1f91 00000001")
	gw.Advance(time.Hour)
	h.expect("0002 0000 1f90 0000 00000000", "0082 0002 000012e2 1f90 0000 00000000")
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = nonceB }), pcp.NotAuthorized, time.Hour)
	h.expect("0002 0000 1f90 0000 00001c20", "0082 0000 000012e2 1f90 1f91 00001c20")
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = nonceB }), pcp.NotAuthorized, 2*time.Hour)
	h.expect("0002 0000 0000 0000 00000000", "0082 0002 000012e2 0000 0000 00000000")
	if e := onlyEntry(t, gw); e.Service != "pcp" {
		t.Errorf("remaining entry: %v", e)
	}
	checkResult(t, h.pcp(unmap), pcp.Success, 0)
	// A mapping without a nonce belongs to its host: PCP can take it over.
	h.expect(mapTCP, "0082 0000 000012e2 1f90 1f90 00001c20")
	checkResult(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = nonceB; unmap(m) }), pcp.NotAuthorized, 2*time.Hour)
}

// TestTableSharedWithUPnP checks that mappings of one protocol conflict with those of
// the others.
func TestTableSharedWithUPnP(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	c, h := newIGDClient(t, gw), newHost(t, gw)
	static := otherHostEntry(backends.TCP, 83)
	static.Static = true
	for _, e := range []gatewaytest.Entry{otherHostEntry(backends.TCP, 82), static} {
		if err := gw.AddMapping(e); err != nil {
			t.Fatal(err)
		}
	}
	h.request("0002 0000 1f90 0050 00001c20") // NAT-PMP: internal port 8080, external port 80
	h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 9, 81 })
	var codes []int
	for _, port := range []string{"80", "81", "82", "83"} {
		codes = append(codes, c.add("ExternalPort", port, "InternalPort", "8080"))
	}
	checkCodes(t, codes, 718, 718, 718, 718)
	if port, code := c.addAny("ExternalPort", "80", "InternalPort", "7"); code != 0 || port != "84" {
		t.Errorf("AddAnyPortMapping: port %s, fault %d", port, code)
	}
	// UPnP and the other protocols neither renew nor delete each other's mappings.
	checkCodes(t, []int{c.add("ExternalPort", "8080", "InternalPort", "8080")}, 0)
	h.expect("0002 0000 1f90 1f90 00001c20", "0082 0000 000004d2 1f90 0050 00001c20")
	h.expect("0002 0000 1f90 0000 00000000", "0082 0000 000004d2 1f90 0000 00000000")
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 8080, 8080 })
	if r.Result != pcp.Success || r.ExternalPort != 8081 {
		t.Errorf("PCP mapping of a port that UPnP has: %+v", r)
	}
	r = h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = 8080 })
	checkResult(t, r, pcp.Success, 0)
	// UPnP lists all mappings in the order of creation. It can delete only some of them.
	var ports []string
	for i := uint32(0); ; i++ {
		args, code := c.byIndex(i)
		if code != 0 {
			break
		}
		ports = append(ports, args["NewExternalPort"])
	}
	if got := strings.Join(ports, " "); got != "82 83 81 84 8080" {
		t.Errorf("listed %s", got)
	}
	checkCodes(t, []int{
		c.remove("TCP", "81"), c.remove("TCP", "82"), c.remove("TCP", "83"), c.remove("TCP", "84"), c.remove("TCP", "8080"),
	}, 606, 606, 606, 0, 0)
	h.request("0002 0000 1f90 0050 00001c20")
	checkCodes(t, []int{c.remove("TCP", "80")}, 0) // the mapping belongs to this host, so any protocol may delete it
}
