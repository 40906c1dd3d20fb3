package gatewaytest_test

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must happen; no test waits for it to pass.
const patience = 20 * time.Second

func start(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gw.Close(); err != nil {
			t.Error(err)
		}
	})
	return gw
}

func waiting(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// host is a LAN host with a socket of its own.
type host struct {
	t *testing.T
	*net.UDPConn
}

func newHost(t *testing.T, gw *gatewaytest.Gateway) host {
	t.Helper()
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(gw.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return host{t, conn}
}

// send sends hex, in which spaces do not count.
func (h host) send(packet string) {
	h.t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(packet, " ", ""))
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.Write(b); err != nil {
		h.t.Fatal(err)
	}
}

// receive returns the next packet as hex.
func (h host) receive() string {
	h.t.Helper()
	b := make([]byte, 4096)
	n, err := h.Read(b)
	if err != nil {
		h.t.Fatal(err)
	}
	return hex.EncodeToString(b[:n])
}

func (h host) ask(packet string) string {
	h.t.Helper()
	h.send(packet)
	return h.receive()
}

// expect asks, and wants the answer; an empty one is silence: the gateway
// takes requests in turn, so that the next one's answer comes first.
func (h host) expect(packet, want string) {
	h.t.Helper()
	h.send(packet)
	if want == "" {
		h.send("0000")
		if got := h.receive(); !strings.HasPrefix(got, "0080") {
			h.t.Errorf("%s: got %s, want silence", packet, got)
		}
		return
	}
	if got := h.receive(); got != strings.ReplaceAll(want, " ", "") {
		h.t.Errorf("%s:\n got %s\nwant %s", packet, got, strings.ReplaceAll(want, " ", ""))
	}
}

func outside(p uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.Addr{}, p)
}

// reference is a gateway with the addresses and the epoch of the vectors.
func reference(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	config.ManualClock, config.Uptime = true, 1234*time.Second
	if !config.External.IsValid() {
		config.External = netip.MustParseAddr("203.0.113.7")
	}
	return start(t, config)
}

// only returns the one entry of the table.
func only(t *testing.T, gw *gatewaytest.Gateway) gatewaytest.Entry {
	t.Helper()
	all := gw.Table()
	if len(all) != 1 {
		t.Fatalf("table has %d entries, want 1: %v", len(all), all)
	}
	return all[0]
}

var neighbour = netip.MustParseAddrPort("127.0.0.99:9")

func taken(p backends.Protocol, port uint16) gatewaytest.Entry {
	return gatewaytest.Entry{Protocol: p, Internal: neighbour, External: outside(port)}
}
