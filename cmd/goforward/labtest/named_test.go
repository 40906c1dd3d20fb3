package labtest

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// A gateway that was named and is none: the error tells what is wrong with it,
// and not that there is none.
func TestNamed(t *testing.T) {
	t.Parallel()
	const wait = 1500 * time.Millisecond
	for name, gw := range map[string]struct {
		addr   string
		kinds  []error
		within time.Duration
	}{
		"a host without a daemon":    {"192.168.77.3", []error{backends.ErrNoReply, syscall.ECONNREFUSED}, allAnswered + slack},
		"a host outside":             {"45.45.45.2", []error{backends.ErrNoReply, syscall.ECONNREFUSED}, allAnswered + slack},
		"an address of nobody":       {"192.168.77.99", []error{backends.ErrNoReply}, wait + slack},
		"an address that leads away": {"45.45.46.1", []error{backends.ErrNoReply}, wait + slack},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the wrong gateway named, "+name)
			home := lab.Home(t, lab.Router{})
			home.Join("printer", "192.168.77.3/24")
			f := newForwarder(t, home.Lan, config{
				Gateway: netip.AddrPortFrom(netip.MustParseAddr(gw.addr), 0), Wait: wait,
			})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080)}})
			t.Logf("the verdict came after %v", got.Took)
			wantKinds(t, got.Failure.err(), gw.kinds...)
			wantNotKind(t, got.Failure.err(), forward.ErrNoGateway)
			if got.Took > gw.within {
				t.Errorf("the verdict came after %v, want %v", got.Took, gw.within)
			}
			wantRules(t, home, 0)
		})
	}
}

// A gateway that was named is used even where no route leads out.
func TestNamedRight(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the gateway named, without a default route")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	home.Lan.Exec(t, "ip", "route", "add", home.Wan.Addr().String(), "via", home.Gateway.String()) // for the answers
	f := newForwarder(t, home.Lan, config{Gateway: netip.AddrPortFrom(home.Gateway, 5351)})
	m := f.enable(tcp(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
	f.close()
	wantRules(t, home, 0)
}
