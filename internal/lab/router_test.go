package lab_test

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

var (
	natpmpRequest = []byte{0, 0}
	pcpRequest    = append([]byte{2, 0}, make([]byte, 22)...) // ANNOUNCE; sendRequest fills in the source address
)

// sendRequest sends a request to port 5351 of the gateway and returns the first byte of
// the reply.
func sendRequest(t *testing.T, home *lab.HomeNet, request []byte, timeout time.Duration) (version byte, err error) {
	t.Helper()
	conn, err := home.Lan.Dial(t.Context(), "udp", "192.168.77.1:5351")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if request[0] == 2 {
		addr := home.Lan.Addr().As16()
		request = append(request[:8:8], addr[:]...)
	}
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	reply := make([]byte, 1100)
	_, err = conn.Read(reply)
	return reply[0], err
}

const (
	replyTimeout   = 5 * time.Second
	noReplyTimeout = 300 * time.Millisecond
)

func TestRefused5351(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: 5351 refused")
	home := lab.Home(t, lab.Router{Refuse5351: true})
	for range 20 { // more than the kernel would send with its rate limit
		if _, err := sendRequest(t, home, natpmpRequest, replyTimeout); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v, want connection refused", err)
		}
	}
}

func TestSilent5351(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: 5351 silent")
	home := lab.Home(t, lab.Router{Silent5351: true})
	if _, err := sendRequest(t, home, natpmpRequest, noReplyTimeout); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a timeout", err)
	}
}

func TestOneProtocol(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: NAT-PMP only, PCP only")
	for name, test := range map[string]struct {
		router  lab.Router
		yes, no []byte
		version byte
	}{
		"NAT-PMP only": {lab.Router{NoPCP: true}, natpmpRequest, pcpRequest, 0},
		"PCP only":     {lab.Router{NoNATPMP: true}, pcpRequest, natpmpRequest, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := lab.Home(t, test.router)
			if got, err := sendRequest(t, home, test.yes, replyTimeout); err != nil || got != test.version {
				t.Errorf("reply of version %d, %v; want %d", got, err, test.version)
			}
			if _, err := sendRequest(t, home, test.no, noReplyTimeout); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the other protocol: %v, want a timeout", err)
			}
		})
	}
}

func TestRuleDuringTest(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: rule added and removed")
	home := lab.Home(t, lab.Router{})
	if _, err := sendRequest(t, home, natpmpRequest, replyTimeout); err != nil {
		t.Fatal(err)
	}
	rule := home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 reject with icmp port-unreachable`)
	if _, err := sendRequest(t, home, natpmpRequest, replyTimeout); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("with the rule: %v, want connection refused", err)
	}
	rule.Remove(t)
	if _, err := sendRequest(t, home, natpmpRequest, replyTimeout); err != nil {
		t.Fatalf("without the rule: %v", err)
	}
}

// TestResetEpoch checks that the epoch starts at 0 with the next start of the daemon.
func TestResetEpoch(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: the epoch restarts")
	home := lab.Home(t, lab.Router{})
	before := epoch(t, home)
	home.Daemon.Restart(t)
	if after := epoch(t, home); after < before {
		t.Errorf("the epoch went from %d to %d, although it is the uptime of the machine", before, after)
	}
	home.Daemon.ResetEpoch(t)
	home.Daemon.Restart(t)
	if after := epoch(t, home); after >= before {
		t.Errorf("the epoch went from %d to %d", before, after)
	}
}

// epoch requests the epoch of the router by NAT-PMP, in seconds.
func epoch(t *testing.T, home *lab.HomeNet) uint32 {
	t.Helper()
	conn, err := home.Lan.Dial(t.Context(), "udp", "192.168.77.1:5351")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(replyTimeout))
	if _, err := conn.Write(natpmpRequest); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 12)
	if n, err := conn.Read(reply); err != nil || n != len(reply) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	return binary.BigEndian.Uint32(reply[4:])
}
