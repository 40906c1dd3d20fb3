package labtest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// attackInterval is the interval at which an attacker sends all its texts from one address.
const attackInterval = 100 * time.Millisecond

// reachAttacker is a host on the LAN that sees everything on it, and sends texts with nonces to
// the port.
type reachAttacker struct {
	t       *testing.T
	host    *lab.Host
	network string
	to      netip.AddrPort
	sources []netip.Addr // its own address, and others that belong to other hosts

	mu      sync.Mutex
	guessed map[string]bool // its own texts
	learned map[string]bool // texts of others that it has seen
}

// The sources of the packets of an attacker: itself, the router, the external address, hosts of
// the internet, and the address from which a connection through the second uplink would come.
var (
	attackSources4 = []string{"192.168.77.66", "192.168.77.1", "45.45.45.1", "45.45.45.2", "8.8.8.8", "46.46.46.1"}
	attackSources6 = []string{"2a0c:7777:1::66", "2a0c:7777:1::1", "2a0c:7777:2::1", "2a0c:7777:2::2", "2a0c:9999::8", "2a0c:8888:2::1"}
)

// joinAttacker adds the attacker. It has the addresses of other hosts, but does not respond to
// requests for their link-layer addresses. This host sends to the public ones by the attacker,
// as after forged redirects, so that even its TCP connections from there are established.
func joinAttacker(t *testing.T, l *reachLab, network string, six bool) *reachAttacker {
	t.Helper()
	a := &reachAttacker{t: t, host: l.home.Join("attacker", "192.168.77.66/24"), network: network, to: l.targets[six].Internal, guessed: map[string]bool{}, learned: map[string]bool{}}
	a.host.Sysctl(t, "net.ipv4.conf.all.arp_ignore", "1")
	a.host.Sysctl(t, "net.ipv4.conf.all.arp_announce", "2")
	a.host.Exec(t, "ip", "addr", "add", "2a0c:7777:1::66/64", "dev", "eth0", "nodad")
	sources, length := attackSources4, "/32"
	if six {
		sources, length = attackSources6, "/128"
	}
	for i, s := range sources {
		a.sources = append(a.sources, netip.MustParseAddr(s))
		if i == 0 {
			continue
		}
		a.host.Exec(t, "ip", "addr", "add", s+length, "dev", "lo")
		if network == "tcp" && i > 2 {
			l.home.Lan.Exec(t, "ip", "route", "add", s+length, "via", sources[0], "dev", "eth0")
		}
	}
	if network == "tcp" { // no connection from the router's addresses can be established
		a.sources = append(a.sources[:1], a.sources[3:]...)
	}
	return a
}

// guesses are the texts that need no knowledge, and some nearly right ones.
func guesses() []string {
	nonce := func() string {
		var b [16]byte
		_, _ = rand.Read(b[:])
		return base64.RawURLEncoding.EncodeToString(b[:])
	}
	return []string{
		"GFWD1 " + nonce(), "GFWD1 " + strings.Repeat("A", 22), "GFWD1 " + strings.Repeat("\x00", 22), "GFWD1 ",
		"NOTIFY /" + nonce() + " HTTP/1.1\r\nHost: x\r\nNT: upnp:event\r\nNTS: upnp:propchange\r\nSEQ: 0\r\n\r\n",
		"GET /" + nonce() + " HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		nonce(), "\n",
	}
}

var requestNonce = regexp.MustCompile(`"nonce":"([\w-]{22})"`)

// addSource adds a source of packets, for an address of the internet. With a TCP connection from there,
// what this host sends back goes to the attacker.
func (a *reachAttacker) addSource(l *reachLab, source netip.Addr) {
	a.t.Helper()
	prefix := netip.PrefixFrom(source, source.BitLen()).String()
	a.host.Exec(a.t, "ip", "addr", "add", prefix, "dev", "lo")
	if a.network == "tcp" {
		l.home.Lan.Exec(a.t, "ip", "route", "add", prefix, "via", a.sources[0].String(), "dev", "eth0")
	}
	a.sources = append(a.sources, source)
}

// learn records the texts of packets that passed the LAN.
func (a *reachAttacker) learn(packets []lab.Packet) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range packets {
		for _, nonce := range requestNonce.FindAllSubmatch(p.Payload, -1) { // a request to a reflector
			a.learned["GFWD1 "+string(nonce[1])] = true
		}
		if text := string(p.Payload); !a.guessed[text] && (strings.HasPrefix(text, "GFWD1 ") || strings.HasPrefix(text, "NOTIFY /") || strings.HasPrefix(text, "GET /")) {
			a.learned[text] = true
		}
	}
}

func (a *reachAttacker) texts() []string {
	all := guesses()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, text := range all {
		a.guessed[text] = true
	}
	for text := range a.learned {
		all = append(all, text)
	}
	return all
}

// start attacks from all sources until stop is called. With a capture, the attacker continues to
// learn.
func (a *reachAttacker) start(seen *lab.Capture) (stop func()) {
	ctx, cancel := context.WithCancel(a.t.Context())
	var attacks sync.WaitGroup
	if seen != nil {
		attacks.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				a.learn(seen.Reset())
				<-tick.C
			}
		})
	}
	for _, source := range a.sources {
		attacks.Go(func() {
			tick := time.NewTicker(attackInterval)
			defer tick.Stop()
			for ctx.Err() == nil {
				if err := a.send(ctx, source); err != nil && ctx.Err() == nil {
					a.t.Errorf("attack from %v: %v", source, err)
					return
				}
				<-tick.C
			}
		})
	}
	return func() { cancel(); attacks.Wait() }
}

// send sends all texts from one source.
func (a *reachAttacker) send(ctx context.Context, source netip.Addr) error {
	if a.network == "udp" {
		pc, err := a.host.ListenPacket("udp", netip.AddrPortFrom(source, 0).String())
		if err != nil {
			return err
		}
		defer func() { _ = pc.Close() }()
		for _, text := range a.texts() {
			if _, err := pc.WriteTo([]byte(text), net.UDPAddrFromAddrPort(a.to)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, text := range a.texts() {
		conn, err := a.host.DialFrom(ctx, "tcp", source, a.to.String())
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(conn, text)
		_ = conn.Close()
	}
	return nil
}

// TestReachAttack measures a port that the internet cannot reach, while a host on the LAN sends
// nonces to it: wrong ones, and those that it has seen before. It sends them from its own address,
// from the router's, and from those of the internet.
func TestReachAttack(t *testing.T) {
	t.Parallel()
	for _, six := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			if six && !longChecks {
				continue
			}
			name := network + " over IPv" + reachCell{six: six}.version()
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, "reach: an attacker on the LAN sends nonces, "+name)
				testReachAttack(t, network, six)
			})
		}
	}
}

func testReachAttack(t *testing.T, network string, six bool) {
	t.Helper()
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	if !l.answers(t, network, six) {
		t.Fatal("the port is not reachable before the attack")
	}
	verify := func(what string, within time.Duration, probers ...string) (reachable bool) {
		r := l.program.call(reachCall{Op: "verify", Network: network, Target: l.targets[six], Probers: probers, Within: within}, func(string) {
			// The phone opens nothing.
		})
		for _, e := range r.Evidence[1:] {
			t.Logf("%s: %s: %s: %s", what, e.Method, e, e.Detail)
			reachable = reachable || e.Verdict == reach.Reachable.String()
		}
		if provesInternet(r) && what != "before" {
			t.Errorf("%s: FALSE REACHABLE: %+v", what, r)
		}
		return reachable
	}
	seen := l.links[0]
	if !verify("before", maxWait, "router") || verify("before", maxWait, "path:eth1", "hairpin") == six {
		t.Error("the probers do not work before the attack")
	}
	attacker := joinAttacker(t, l, network, six)
	attacker.learn(seen.Reset())
	if len(attacker.learned) == 0 && network == "tcp" {
		t.Error("the attacker has seen no nonce")
	}
	t.Logf("the attacker has seen %d texts", len(attacker.learned))

	l.home.Daemon.Forget(t)
	l.home.Router.Rule(t, "output", `oifname "lan0" ct state new ip daddr `+l.home.Lan.Addr().String()+` drop`)
	l.home.Router.Rule(t, "output", `oifname "lan0" ct state new meta nfproto ipv6 meta l4proto { tcp, udp } drop`)
	if l.answers(t, network, six) {
		t.Fatal("the port is reachable during the attack")
	}
	received := func() map[netip.Addr]int {
		return l.program.call(reachCall{Op: "received", Network: network, Target: l.targets[six]}, nil).Received
	}
	before := received()
	stop := attacker.start(nil)
	defer func() { stop() }()
	if verify("attack", 2*maxWait, "path:eth1", "hairpin", "router", "wait") || network == "tcp" && verify("attack", 3*time.Second, "phone") {
		t.Error("attack: FALSE REACHABLE")
	}
	stop()
	after := received()
	for _, source := range attacker.sources {
		if n := after[source] - before[source]; n < 10 {
			t.Errorf("the port received %d texts from %v: this was no attack", n, source)
		}
	}

	// Now the attacker repeats each nonce as soon as it passes the LAN. So it can pretend that
	// the router forwards the port, or connects to this host: both send a nonce through the LAN.
	stop = attacker.start(l.home.Lan.Capture(t, "eth0")) // the other one is full
	verify("nonces repeated at once", 2*maxWait, "hairpin", "router", "wait")
}

// TestReachAttackReflector measures a port that the internet cannot reach by a reflector, while a host on
// the LAN that sees all packets sends nonces to the port, also from the address of the
// reflector. With HTTPS it does not learn the nonce. With HTTP it does, and can pretend to be the
// reflector: this shows that the attack works.
func TestReachAttackReflector(t *testing.T) {
	t.Parallel()
	for _, c := range reachCombinations {
		if c.six && !longChecks {
			continue
		}
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			if !c.six {
				lab.Scenario(t, "reach: an attacker on the LAN pretends to be the reflector, "+c.String())
			}
			testReachAttackReflector(t, c)
		})
	}
}

func testReachAttackReflector(t *testing.T, c reachCell) {
	t.Helper()
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	h := startHelpers(t, l.home, noHelpers)
	server, source := h.first, h.second
	if c.six {
		server, source = h.first6, h.second6
	}
	certificate, key := createServerCertificate(t, t.TempDir(), server)
	l.program.call(reachCall{Op: "trust", Address: certificate}, nil)
	start := func(port uint16, args reflectorArgs) string {
		args.Addresses, args.DialFrom = []netip.AddrPort{netip.AddrPortFrom(server, port)}, []netip.Addr{source}
		return "reflector:" + startReflector(t, l.home.Wan, args)[c.six]
	}
	plain := start(80, reflectorArgs{})
	secure := strings.Replace(start(443, reflectorArgs{Certificate: certificate, Key: key}), "http:", "https:", 1)
	l.want(t, c, "before", secure, fromOutside)

	providerBlocks(t, l)
	if l.answers(t, c.network, c.six) {
		t.Fatal("the port is reachable")
	}
	attacker := joinAttacker(t, l, c.network, c.six)
	if c.network == "tcp" { // without packets from the address to which the request goes
		attacker.sources = attacker.sources[:1]
		l.home.Lan.Exec(t, "ip", "route", "del", netip.PrefixFrom(server, server.BitLen()).String())
	}
	attacker.addSource(l, source)
	stop := attacker.start(l.home.Lan.Capture(t, "eth0"))
	defer func() { stop() }()
	l.want(t, c, "attack, HTTPS", secure, unreachable)
	l.want(t, c, "attack, HTTP", plain, fromOutside)
	if n := l.program.call(reachCall{Op: "received", Network: c.network, Target: l.targets[c.six]}, nil).Received[source]; n < 10 {
		t.Errorf("the port received %d texts from the address of the reflector: this was no attack", n)
	}
}

// provesInternet reports whether a result says that the internet gets in.
func provesInternet(r reachReply) bool {
	return r.Verdict == reach.Reachable.String() || r.Proven == reach.LevelInternet.String()
}

// TestReachPhoneAtHome opens the URL for a phone from inside the home, in all ways that there are.
// It is not proof that the internet gets in.
func TestReachPhoneAtHome(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "reach: a phone that uses the Wi-Fi of the home")
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	loopback(true)(t, l)
	phone := l.home.Join("phone", "192.168.77.66/24")
	phone.Exec(t, "ip", "addr", "add", "2a0c:7777:1::66/64", "dev", "eth0", "nodad")
	for _, c := range []struct {
		name    string
		six     bool
		host    *lab.Host
		address string // replaces the one in the URL
		want    string
	}{
		{"by the external address", false, phone, "", fromRouter},
		{"by the internal address", false, phone, l.targets[false].Internal.String(), fromLAN},
		{"from this host, by the internal address", false, l.home.Lan, l.targets[false].Internal.String(), unknown},
		{"from the router", false, l.home.Router, l.targets[false].Internal.String(), fromRouter},
		{"over IPv6", true, phone, "", fromLAN},
		{"over IPv6, from this host", true, l.home.Lan, "", unknown},
	} {
		call := reachCall{Op: "verify", Network: "tcp", Target: l.targets[c.six], Probers: []string{"phone"}, Within: maxWait}
		r := l.program.call(call, func(text string) {
			address, path := splitURL(t, text)
			if c.address != "" {
				address = c.address
			}
			if err := openURL(t, c.host, address, path, maxWait); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		})
		e := r.Evidence[len(r.Evidence)-1]
		t.Logf("%s: %s: %s", c.name, e, e.Detail)
		if provesInternet(r) {
			t.Errorf("%s: FALSE REACHABLE: %+v", c.name, r)
		}
		if e.String() != c.want {
			t.Errorf("%s: %s, want %s: %s", c.name, e, c.want, e.Detail)
		}
	}
}
