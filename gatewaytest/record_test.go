package gatewaytest_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

func TestRequestsAndStats(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}})
	h := newHost(t, gw)
	h.request("0000")
	h.request(mapTCP)
	h.request("0001 0000 1ae1 0000 00000000")
	h.request("0200")
	h.request("0007")
	var names []string
	for _, q := range gw.Requests() {
		names = append(names, fmt.Sprintf("%s %x", q.Name(), q.Raw))
		if q.Source.String() != h.LocalAddr().String() || q.Time.IsZero() {
			t.Errorf("request from %v at %v", q.Source, q.Time)
		}
	}
	want := "natpmp external address 0000|natpmp map tcp 000200001f901f9000001c20|" +
		"natpmp unmap udp 000100001ae1000000000000|pcp other 0200|natpmp other 0007"
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s := gw.Stats(); s.Requests["natpmp map tcp"] != 1 || len(s.Requests) != 5 {
		t.Errorf("stats %+v", s)
	}
	if got, err := gw.AwaitRequests(testContext(t), 1, isMap); err != nil || len(got) != 1 {
		t.Errorf("AwaitRequests: %v, %v", got, err)
	}
	gw.ResetStats()
	if s := gw.Stats(); len(s.Requests) != 0 || len(gw.Requests()) != 0 {
		t.Errorf("after reset: %+v", s)
	}
}

func TestRequestHistoryLimit(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	h := newHost(t, gw)
	for range 9000 {
		h.request("0000")
	}
	if n := len(gw.Requests()); n < 4096 || n > 8192 {
		t.Errorf("%d requests stored", n)
	}
	if n := gw.Stats().Requests["natpmp external address"]; n != 9000 {
		t.Errorf("%d requests counted", n)
	}
}

func TestAwaitRequestsReturns(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	ctx := testContext(t)
	h := newHost(t, gw)
	go func() { _, _ = h.Write([]byte{0, 0}) }()
	if got, err := gw.AwaitRequests(ctx, 1, nil); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestConcurrentClients checks that concurrent requests for one external port each get
// their own port.
func TestConcurrentClients(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return len(q.Raw) == 3 }})
	const clients, each = 8, 25
	var wg sync.WaitGroup
	for i := range clients {
		h := newHost(t, gw)
		wg.Go(func() {
			for j := range each {
				h.send(fmt.Sprintf("00020000%04x1f9000001c20", 1000+i*each+j))
				b := make([]byte, 64)
				n, err := h.Read(b)
				if err != nil || n != 16 || b[3] != 0 {
					t.Errorf("%x, %v", b[:n], err)
					return
				}
				_ = gw.Table()
				_ = gw.Stats()
			}
		})
	}
	wg.Wait()
	if n := len(gw.Table()); n != clients*each {
		t.Errorf("%d entries, want %d", n, clients*each)
	}
}

func TestUPnPRequests(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Admit: func(a netip.Addr) bool { return a.String() != "127.0.0.9" }})
	c := newIGDClient(t, gw)
	c.get("/rootDesc.xml")
	c.add()
	c.addAny("Protocol", "UDP")
	c.remove("TCP", "8080")
	c.lookup("TCP", "8080")
	c.byIndex(0)
	c.listRange("1", "2")
	c.call("GetExternalIPAddress")
	c.call("GetStatusInfo")
	c.call("Reboot")
	c.get("/other")
	var names []string
	for _, q := range gw.Requests() {
		names = append(names, strings.TrimSpace(q.Name()+" "+q.Action))
		if q.Source.Addr().String() != "127.0.0.1" || q.Time.IsZero() || !strings.Contains(string(q.Raw), "\r\n\r\n") {
			t.Errorf("request %+v", q)
		}
	}
	want := "upnp describe|upnp map tcp AddPortMapping|upnp map udp AddAnyPortMapping|upnp unmap tcp DeletePortMapping|" +
		"upnp look up GetSpecificPortMappingEntry|upnp list GetGenericPortMappingEntry|upnp list GetListOfPortMappings|" +
		"upnp external address GetExternalIPAddress|upnp status GetStatusInfo|upnp other Reboot|upnp other"
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s := gw.Stats(); s.Replies != 11 || s.Ignored != 0 {
		t.Errorf("stats %+v", s)
	}
	c.from = "127.0.0.9"
	checkCodes(t, []int{c.add()}, connClosed)
	if s := gw.Stats(); s.Replies != 11 || s.Ignored != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestPCPFaultsAndRequests(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	remove := gw.Inject(gatewaytest.Fault{Match: isMap, Result: int(pcp.UserExceededQuota)})
	checkResult(t, h.pcp(nil), pcp.UserExceededQuota, 30*time.Second)
	remove()
	h.pcp(nil)
	h.pcp(unmap)
	h.request("02000000 00000000 00000000 00000000 0000ffff 7f000001")
	h.request("02020000 00000258 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 11000000 9c400000 " +
		"00000000 00000000 0000ffff 00000000 0d960000 00000000 00000000 0000ffff c6336409")
	h.request("02090000 00000000 00000000 00000000 0000ffff 7f000001")
	var names []string
	for _, q := range gw.Requests() {
		names = append(names, q.Name())
	}
	want := "pcp map tcp|pcp map tcp|pcp unmap tcp|pcp announce|pcp peer udp|pcp other"
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
