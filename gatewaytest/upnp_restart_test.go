package gatewaytest_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestUPnPMovePort(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{MovePort: true})
	static := taken(backends.TCP, 80)
	static.Static = true
	if err := c.gw.AddMapping(static); err != nil {
		t.Fatal(err)
	}
	wantCodes(t, []int{c.add()}, 0)
	idle, err := net.Dial("tcp4", c.to)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	ssdp := c.gw.SSDP()
	c.gw.Restart(gatewaytest.RestartOptions{})
	if _, err := c.ask("GetStatusInfo"); !refusedBy(err) {
		t.Errorf("the old port: %v", err)
	}
	_ = idle.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(idle); len(b) != 0 || isTimeout(err) {
		t.Errorf("an old connection: %q, %v", b, err)
	}
	c.to = hostPort(t, c.gw.DescriptionURL())
	_, code := c.lookup("TCP", "8080")
	wantCodes(t, []int{code, second(c.lookup("TCP", "80")), c.add()}, 714, 0, 0)
	if c.gw.SSDP() != ssdp {
		t.Error("the search port moved too")
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestUPnPDown(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{MovePort: true}}})
	c, h := newControl(t, gw), newHost(t, gw)
	wantCodes(t, []int{c.add()}, 0)
	for range 3 {
		gw.DownUPnP()
		gw.DownUPnP()
		if _, err := c.ask("GetStatusInfo"); !refusedBy(err) {
			t.Errorf("while down: %v", err)
		}
		h.expect("0000", addrReply)
		gw.DownPCP()
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		_, code := c.lookup("TCP", "8080")
		wantCodes(t, []int{code}, 0)
	}
	gw.Down()
	if _, err := c.ask("GetStatusInfo"); !refusedBy(err) {
		t.Errorf("all down: %v", err)
	}
	gw.Restart(gatewaytest.RestartOptions{}) // down it stays
	c.to = hostPort(t, gw.DescriptionURL())
	if _, err := c.ask("GetStatusInfo"); !refusedBy(err) {
		t.Errorf("restarted while down: %v", err)
	}
}

func TestUPnPOff(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Notify: netip.MustParseAddrPort("127.0.0.1:9"), Protocols: []string{"natpmp", "pcp"}})
	gw.Announce()
	gw.Byebye()
	gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	gw.Restart(gatewaytest.RestartOptions{})
	gw.DownUPnP()
	if gw.DescriptionURL() != "" || gw.DescriptionURL6() != "" || gw.SSDP().IsValid() || gw.SSDP6().IsValid() || gw.Stats().Notifications != 0 {
		t.Error("UPnP is not off")
	}
	newHost(t, gw).ask("0000")
}

func TestUPnPAddresses(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{ListenSSDP: netip.MustParseAddrPort("127.0.0.2:0"), ListenHTTP: netip.MustParseAddrPort("127.0.0.3:0")})
	if gw.SSDP().Addr().String() != "127.0.0.2" || !strings.HasPrefix(gw.DescriptionURL(), "http://127.0.0.3:") {
		t.Errorf("at %v and %s", gw.SSDP(), gw.DescriptionURL())
	}
	c := newControl(t, gw)
	wantCodes(t, []int{c.add()}, 0)
	other := start(t, gatewaytest.Config{})
	if other.UDN() == gw.UDN() || len(gw.UDN()) != len("uuid:00000000-0000-0000-0000-000000000000") {
		t.Errorf("names %s and %s", gw.UDN(), other.UDN())
	}
	at := netip.MustParseAddrPort(c.to)
	if _, err := gatewaytest.Start(gatewaytest.Config{ListenHTTP: at}); err == nil {
		t.Error("two servers on one port")
	}
}

func TestUPnPFaults(t *testing.T) {
	t.Parallel()
	isAdd := func(r gatewaytest.Request) bool { return r.Action == "AddPortMapping" }
	c := controlled(t, igd{})
	inject := func(f gatewaytest.Fault) {
		f.Match, f.Times = isAdd, 1
		c.gw.Inject(f)
	}
	inject(gatewaytest.Fault{Drop: true})
	wantCodes(t, []int{c.add()}, ended)
	if n := len(c.gw.Table()); n != 0 {
		t.Errorf("a dropped request made %d entries", n)
	}
	inject(gatewaytest.Fault{Result: 725})
	inject(gatewaytest.Fault{Result: -911})
	wantCodes(t, []int{c.add(), c.add()}, 725, -911)
	if n := len(c.gw.Table()); n != 0 {
		t.Errorf("a refused request made %d entries", n)
	}
	inject(gatewaytest.Fault{Reply: func(b []byte) [][]byte { return [][]byte{b[:4], []byte(" me")} }, Duplicate: 3})
	if got, err := c.ask("AddPortMapping", mapping()...); got != "POST me" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	inject(gatewaytest.Fault{DropReply: true})
	wantCodes(t, []int{c.add()}, ended)
	only(t, c.gw)
	inject(gatewaytest.Fault{Corrupt: func(b []byte) []byte { return b[:17] }})
	if got, err := c.ask("AddPortMapping", mapping()...); got != "HTTP/1.1 200 OK\r\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	hold := make(chan struct{})
	inject(gatewaytest.Fault{Hold: hold, Delay: time.Millisecond})
	held := make(chan int)
	go func() { held <- c.add("ExternalPort", "1") }()
	if _, err := c.gw.AwaitRequests(waiting(t), 7, isAdd); err != nil {
		t.Fatal(err)
	}
	_, code := c.lookup("TCP", "1") // done already, and answered before
	close(hold)
	wantCodes(t, []int{code, <-held}, 0, 0)

	c.gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == gatewaytest.OpDescribe }, Result: 503})
	if got := c.get("/rootDesc.xml"); status(got) != "503 Service Unavailable" {
		t.Errorf("got %q", got)
	}
}

// Close and Down do not wait for what is held back.
func TestUPnPCloseWhileHeld(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	c.gw.Inject(gatewaytest.Fault{Hold: make(chan struct{})})
	held := make(chan string)
	go func() {
		got, _ := c.ask("GetStatusInfo")
		held <- got
	}()
	if _, err := c.gw.AwaitRequests(waiting(t), 1, nil); err != nil {
		t.Fatal(err)
	}
	c.gw.DownUPnP()
	if got := <-held; got != "" {
		t.Errorf("got %q", got)
	}
	if err := c.gw.Close(); err != nil {
		t.Error(err)
	}
}

func TestUPnPRequests(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Admit: func(a netip.Addr) bool { return a.String() != "127.0.0.9" }})
	c := newControl(t, gw)
	c.get("/rootDesc.xml")
	c.add()
	c.anyPort("Protocol", "UDP")
	c.remove("TCP", "8080")
	c.lookup("TCP", "8080")
	c.index(0)
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
	wantCodes(t, []int{c.add()}, ended)
	if s := gw.Stats(); s.Replies != 11 || s.Ignored != 1 {
		t.Errorf("stats %+v", s)
	}
}
