package reach

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestPhone checks what an arrival proves, by its first bytes and its source.
func TestPhone(t *testing.T) {
	for name, tt := range map[string]struct {
		from    string
		corrupt bool // the nonce is another one
		verdict Verdict
		level   Level
	}{
		"internet":      {from: "8.8.8.8:4000", verdict: Reachable, level: LevelInternet},
		"the LAN":       {from: "192.168.77.3:4000", verdict: Reachable, level: LevelLAN},
		"the router":    {from: "192.168.77.1:4000", verdict: Reachable, level: LevelRouter},
		"its address":   {from: "45.45.45.1:4000", verdict: Reachable, level: LevelRouter},
		"this host":     {from: "127.0.0.1:4000", level: LevelInternet},
		"another nonce": {from: "8.8.8.8:4000", corrupt: true, level: LevelInternet},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &stubCatcher{owner: OwnerTemporary}
				begun := time.Now()
				e, err := Phone(func(shown string) {
					u, err := url.Parse(shown)
					if err != nil || u.Host != "45.45.45.1:8080" || len(u.Path) != 23 {
						t.Fatalf("the URL is %q, %v", shown, err)
					}
					path := u.Path
					if tt.corrupt {
						path = strings.ToUpper(path) + "x"
					}
					answer, matches, _ := c.Match([]byte("GET "+path+" HTTP/1.1\r\n"), netip.MustParseAddrPort(tt.from))
					if matches == tt.corrupt || matches && !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK\r\n") {
						t.Errorf("matches %v, answer %q", matches, answer)
					}
				}).Probe(t.Context(), testTarget, c)
				if e.Verdict != tt.verdict || e.Level != tt.level || (err == nil) != (tt.verdict == Reachable) {
					t.Errorf("%v, %v, %v, want %v, %v", e.Verdict, e.Level, err, tt.verdict, tt.level)
				}
				if took := time.Since(begun); tt.corrupt != (took == phoneTimeout) {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestPhoneOtherProgram checks that a connection to another program never counts as a proof, and
// that the person learns its source.
func TestPhoneOtherProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &stubCatcher{owner: OwnerOther}
		e, err := Phone(func(shown string) {
			if shown != "http://45.45.45.1:8080/" {
				t.Errorf("the URL is %s", shown)
			}
			c.Seen(netip.MustParseAddrPort("192.168.77.3:4000")) // of the LAN
			c.Seen(netip.MustParseAddrPort("8.8.8.8:4000"))
		}).Probe(t.Context(), testTarget, c)
		if e.Verdict != Unknown || err == nil || !strings.Contains(err.Error(), "8.8.8.8 ") {
			t.Errorf("%v, %v, want unknown, and the source", e.Verdict, err)
		}
	})
}

// TestNotApplicable checks the targets for which a prober has nothing to measure. It must then
// neither show a URL nor send anything.
func TestNotApplicable(t *testing.T) {
	phone := Phone(func(url string) { t.Errorf("the URL %s was shown", url) })
	udp, hidden, own := testTarget, testTarget, testTarget
	udp.Protocol = backends.UDP
	hidden.External = netip.AddrPortFrom(netip.Addr{}, 8080)
	own.External = netip.MustParseAddrPort("127.0.0.1:8080")
	own.Interface = "lo"
	for name, tt := range map[string]struct {
		prober Prober
		target Target
		owner  Owner
		want   error // nil: any
	}{
		"phone, UDP":              {phone, udp, OwnerTemporary, backends.ErrUnsupported},
		"phone, not observed":     {phone, testTarget, OwnerNone, errNotObserved},
		"phone, hidden address":   {phone, hidden, OwnerTemporary, backends.ErrUnsupported},
		"hairpin, hidden address": {Hairpin(), hidden, OwnerTemporary, backends.ErrUnsupported},
		"hairpin, own address":    {Hairpin(), own, OwnerTemporary, backends.ErrUnsupported},
		"path, hidden address":    {Path("lo"), hidden, OwnerTemporary, backends.ErrUnsupported},
		"path, the same uplink":   {Path("lo"), own, OwnerTemporary, backends.ErrInvalid},
		"path, no interface":      {Path("goforward0"), testTarget, OwnerTemporary, nil},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := tt.prober.Probe(t.Context(), tt.target, &stubCatcher{owner: tt.owner})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || e.Verdict != Unknown {
				t.Errorf("%v, %v, want %v", e.Verdict, err, tt.want)
			}
		})
	}
}

// TestLoopbackGateway checks that nothing is sent to the external address of a test gateway: a host
// of the internet may have it.
func TestLoopbackGateway(t *testing.T) {
	target := testTarget
	target.Gateway = netip.MustParseAddr("127.0.0.1")
	for _, p := range []Prober{Hairpin(), Path("lo")} {
		if _, err := p.Probe(t.Context(), target, &stubCatcher{owner: OwnerTemporary}); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", p.Name(), err)
		}
	}
}
