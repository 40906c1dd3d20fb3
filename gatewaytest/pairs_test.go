package gatewaytest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	_ "github.com/natforward/goforward/internal/holders/unshared"
	"github.com/natforward/goforward/internal/testseed"
)

const (
	// samplePairs is the number of pairs that run without GOFORWARD_PAIRS=all.
	samplePairs = 600
	// pairsPerProcessor is the number of pairs that run at the same time on each processor.
	// They mostly wait.
	pairsPerProcessor = 12
	// pairTimeout bounds each step of a pair.
	pairTimeout = 30 * time.Second
)

// TestPairs forwards a port on routers that have one switch of package quirks, or two at the
// same time. Without GOFORWARD_PAIRS=all, it runs each switch alone, and a sample of the
// pairs, which depends on GOFORWARD_SEED. GOFORWARD_PAIRS can also be the name of a switch or
// of a pair, as in the failures.
//
// It does not run in parallel with the other tests, because it keeps all processors busy.
func TestPairs(t *testing.T) {
	pairs, excluded := allPairs(t)
	total := len(pairs) + excluded
	if 100*len(pairs) < 80*total {
		t.Errorf("only %d of %d pairs can run", len(pairs), total)
	}
	var alone []pair
	for _, s := range switches {
		alone = append(alone, pair{s})
	}
	if probe, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
		t.Logf("IPV6 NOT TESTED: no ::1 on this machine (%v)", err)
		needsIPv6 := func(p pair) bool { return p.has(func(s pairSwitch) bool { return s.v6 }) }
		alone, pairs = slices.DeleteFunc(alone, needsIPv6), slices.DeleteFunc(pairs, needsIPv6)
	} else {
		_ = probe.Close()
	}
	seed := testseed.Of(t)
	switch only := os.Getenv("GOFORWARD_PAIRS"); only {
	case "all":
	case "":
		if strconv.IntSize == 32 { // the sample has been run on 64 bits
			pairs = nil
		}
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
		pairs = pairs[:min(samplePairs, len(pairs))]
	default:
		other := func(p pair) bool { return !p.matches(only) }
		alone, pairs = slices.DeleteFunc(alone, other), slices.DeleteFunc(pairs, other)
	}
	t.Logf("%d of %d pairs run, %d excluded; %d switches run alone", len(pairs), total, excluded, len(alone))
	runPairs(t, append(alone, pairs...))
}

// runPairs runs the pairs, and reports the failures.
func runPairs(t *testing.T, pairs []pair) {
	t.Helper()
	slots := make(chan struct{}, pairsPerProcessor*runtime.GOMAXPROCS(0))
	failures := make([]string, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := p.run(); err != nil {
				failures[i] = fmt.Sprintf("%v: %v", p, err)
			}
		})
	}
	wg.Wait()
	for _, f := range failures {
		if f != "" {
			t.Error(f)
		}
	}
}

// pair is one switch or two.
type pair []pairSwitch

func (p pair) String() string {
	var names []string
	for _, s := range p {
		names = append(names, s.name)
	}
	return strings.Join(names, " + ")
}

// matches reports whether the pair has this name, or a switch with this name.
func (p pair) matches(name string) bool {
	return p.String() == name || slices.ContainsFunc(p, func(s pairSwitch) bool { return s.name == name })
}

// allPairs returns the pairs that can run, and the number of those that are excluded.
func allPairs(t *testing.T) (pairs []pair, excluded int) {
	t.Helper()
	used := map[string]bool{}
	for i, a := range switches {
		for _, b := range switches[i+1:] {
			p := pair{a, b}
			switch _, out := excludedPairs[p.String()]; {
			case out:
				used[p.String()] = true
				excluded++
			case a.field() != b.field():
				pairs = append(pairs, p)
			}
		}
	}
	for name, reason := range excludedPairs {
		if !used[name] || reason == "" {
			t.Errorf("no pair %q, or no reason for its exclusion", name)
		}
	}
	return pairs, excluded
}

// field returns the name of the field of package quirks.
func (s pairSwitch) field() string {
	name, _, _ := strings.Cut(s.name, "=")
	return name
}

// protocol returns the protocol that the switch changes.
func (s pairSwitch) protocol() string {
	protocol, _, _ := strings.Cut(s.name, ".")
	return strings.ToLower(protocol)
}

// has reports whether a switch of the pair has the property.
func (p pair) has(property func(pairSwitch) bool) bool { return slices.ContainsFunc(p, property) }

// kinds returns the errors that Enable may return, or none if it must succeed.
func (p pair) kinds() []error {
	var kinds []error
	for _, s := range p {
		kinds = append(kinds, s.may...)
	}
	if slices.ContainsFunc(p, p.otherProtocolCan) {
		kinds = nil
	}
	for _, c := range p.combinations() {
		kinds = append(kinds, c.may...)
	}
	return kinds
}

// otherProtocolCan reports whether the protocol of s does what the other protocol does not.
func (p pair) otherProtocolCan(s pairSwitch) bool {
	return s.may == nil && !s.everywhere && p.has(func(o pairSwitch) bool {
		return o.protocol() != s.protocol() && !o.everywhere && (!o.v6 || s.protocol() == "pcp")
	})
}

// combinations returns the combinations that apply to the pair.
func (p pair) combinations() []combination {
	named := func(name string) bool { return p.has(func(s pairSwitch) bool { return s.name == name }) }
	return slices.DeleteFunc(slices.Clone(combinations), func(c combination) bool {
		return !named(c.one) || !slices.ContainsFunc(c.others, named)
	})
}

// blind reports whether no response and no notification shows a restart.
func (p pair) blind() bool {
	return p.has(func(s pairSwitch) bool { return s.blind }) || slices.ContainsFunc(p.combinations(), func(c combination) bool { return c.blind })
}

// kept reports whether the router may keep the mapping, or seem to keep it.
func (p pair) kept() bool {
	return p.has(func(s pairSwitch) bool { return s.kept }) || slices.ContainsFunc(p.combinations(), func(c combination) bool { return c.kept })
}

// routers counts the routers.
var routers atomic.Uint32

// nextRouter returns the address of the next router. In one process, calls to routers with
// the same address wait for each other.
func nextRouter() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}) // other systems have only this address
	}
	n := routers.Add(1)
	return netip.AddrFrom4([4]byte{127, 100 + byte(n>>16), byte(n >> 8), byte(n)})
}

// run forwards a port on a router with the switches.
func (p pair) run() error {
	v6 := p.has(func(s pairSwitch) bool { return s.v6 })
	config := gatewaytest.Config{Listen: netip.AddrPortFrom(nextRouter(), 0)}
	for _, s := range p {
		if !slices.Contains(config.Protocols, s.protocol()) {
			config.Protocols = append(config.Protocols, s.protocol())
		}
		s.set(&config)
	}
	host := "127.0.0.1:0"
	if v6 {
		host = "[::1]:0"
		config.Listen6 = netip.MustParseAddrPort(host)
	}
	gw, err := gatewaytest.Start(config)
	if err != nil {
		return err
	}
	defer gw.Close()
	for _, s := range p {
		if s.before != nil {
			s.before(gw)
		}
	}
	ln, err := net.Listen("tcp", host)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	wg.Go(func() { echoAll(ln) })

	settings := gw.Config()
	if v6 {
		settings.Gateway = gw.Addr6()
		settings.Test.SSDP = gw.UPnP().SSDP6()
		if !settings.Test.SSDP.IsValid() { // UPnP over IPv4 only, and no route shows the gateway's IPv4 address
			settings.UPnPURL = gw.UPnP().DescriptionURL()
		}
	}
	settings.DiscoveryTimeout, settings.RequestTimeout, settings.CloseTimeout = 5*time.Second, pairTimeout, 10*time.Second
	f, err := forward.New(settings)
	if err != nil {
		return err
	}
	defer f.Close()
	r := pairRun{pair: p, gw: gw, f: f, kinds: p.kinds(), port: uint16(ln.Addr().(*net.TCPAddr).Port), v6: v6}
	return r.run()
}

// echoAll returns the bytes of each connection to its client.
func echoAll(ln net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(testTimeout))
			_, _ = io.Copy(conn, conn)
		})
	}
}

// pairRun is the run of one pair.
type pairRun struct {
	pair  pair
	gw    *gatewaytest.Gateway
	f     *forward.Forwarder
	kinds []error // errors that requests may return
	port  uint16  // internal port
	v6    bool
}

func (r pairRun) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*pairTimeout)
	defer cancel()
	options := []forward.Option{forward.TCP(r.port), forward.Description("test (of pairs)")}
	if r.v6 {
		options = append(options, forward.IPv6())
	} else {
		options = append(options, forward.External(443))
	}
	m, err := r.f.Enable(ctx, options...)
	if err != nil {
		closeErr := r.f.Close()
		if err := r.checkKind("Enable", err); err != nil {
			return err
		}
		return r.checkTable("Enable failed", errors.Join(err, closeErr))
	}
	if len(r.pair) == 1 && r.pair[0].fails {
		return fmt.Errorf("no error from Enable: %v", m)
	}
	steps := []struct {
		name string
		run  func(context.Context, *forward.Mapping) error
	}{{"bytes", r.check}, {"Refresh", r.refresh}, {"restart", r.restart}, {"Mappings", r.list}}
	for _, step := range steps {
		if err := step.run(ctx, m); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", step.name, err), r.close(m))
		}
	}
	return r.close(m)
}

// checkKind returns an error if err is not one of the expected kinds.
func (r pairRun) checkKind(step string, err error) error {
	for _, kind := range r.kinds {
		if errors.Is(err, kind) {
			return nil
		}
	}
	return fmt.Errorf("%s: %w\nexpected: %v", step, err, r.kinds)
}

// pass sends bytes from outside and back.
func (r pairRun) pass(ctx context.Context, m *forward.Mapping) error {
	entries := r.gw.Table()
	i := slices.IndexFunc(entries, func(e gatewaytest.Entry) bool {
		return e.Internal.Port() == r.port && e.External.Port() == m.External().Port()
	})
	if r.pair.has(func(s pairSwitch) bool { return s.deaf }) {
		if i < 0 && !r.v6 {
			return fmt.Errorf("no entry in %v", entries)
		}
		return nil
	}
	to := m.External().AddrPort
	if !to.Addr().IsValid() && i >= 0 { // the gateway hides its address
		to = entries[i].External
	}
	conn, err := r.gw.Dial(ctx, "tcp", to.String())
	if err != nil {
		return fmt.Errorf("%w; table %v", err, r.gw.Table())
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	b := []byte("bytes")
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, b)
	return err
}

// check checks that bytes pass.
func (r pairRun) check(ctx context.Context, m *forward.Mapping) error {
	if r.pair.has(func(s pairSwitch) bool { return s.restless }) {
		return r.await(ctx, m)
	}
	return r.pass(ctx, m)
}

// refresh requests the mapping again.
func (r pairRun) refresh(ctx context.Context, m *forward.Mapping) error {
	if err := m.Refresh(ctx); err != nil {
		return r.checkKind("error", err)
	}
	return r.check(ctx, m)
}

// restart restarts the router, and waits until bytes pass again.
func (r pairRun) restart(ctx context.Context, m *forward.Mapping) error {
	r.gw.Restart(gatewaytest.RestartOptions{})
	if r.v6 || r.pair.blind() {
		if err := m.Refresh(ctx); err != nil {
			return r.checkKind("error", err)
		}
	}
	return r.await(ctx, m)
}

// await waits until bytes pass, or until the mapping reports an expected failure.
func (r pairRun) await(ctx context.Context, m *forward.Mapping) error {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	for {
		changed := m.Changed()
		err := r.pass(ctx, m)
		status := m.Status()
		switch {
		case err == nil && status.State == forward.StateActive:
			return nil
		case status.Err != nil && r.checkKind("", status.Err) == nil:
			return nil
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w; status %v, error %w", err, status.State, status.Err)
		}
	}
}

// list checks that Mappings returns the mapping. It repeats this for some time, because the
// mapping can be requested again meanwhile.
func (r pairRun) list(ctx context.Context, m *forward.Mapping) error {
	ctx, cancel := context.WithTimeout(ctx, pairTimeout)
	defer cancel()
	for {
		all, err := r.f.Mappings(ctx)
		if m.Status().State != forward.StateActive && (r.kinds != nil || r.pair.has(func(s pairSwitch) bool { return s.restless })) {
			return nil
		}
		for _, e := range all {
			if e.Ours && e.Mapping.External.Port() == m.External().Port() {
				return nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%v is not among %v, %w; table %v", m, all, err, r.gw.Table())
		}
	}
}

// close deletes the mapping.
func (r pairRun) close(m *forward.Mapping) error {
	err := errors.Join(m.Close(), r.f.Close())
	if err != nil && !r.pair.kept() {
		return fmt.Errorf("error of Close: %w", err)
	}
	return r.checkTable("Close", err)
}

// checkTable checks that nothing is left on the router. Entries that cannot be deleted may
// remain if reported is an error.
func (r pairRun) checkTable(step string, reported error) error {
	left := slices.DeleteFunc(r.gw.Table(), func(e gatewaytest.Entry) bool { return e.Static })
	if len(left) == 0 || reported != nil && r.pair.kept() {
		return nil
	}
	return fmt.Errorf("%s: left in the table: %v (reported: %w)", step, left, reported)
}

// TestPairSwitches checks that each field of package quirks has a switch in the test of
// pairs.
func TestPairSwitches(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	for _, s := range switches {
		have[s.field()] = true
		var before, after gatewaytest.Config
		s.set(&after)
		if after.Quirks.UPnP.UDN == before.Quirks.UPnP.UDN && reflect.DeepEqual(before.Quirks, after.Quirks) {
			t.Errorf("%s changes nothing", s.name)
		}
	}
	for _, c := range combinations {
		for _, name := range append(c.others, c.one) {
			if !slices.ContainsFunc(switches, func(s pairSwitch) bool { return s.name == name }) {
				t.Errorf("no switch %s", name)
			}
		}
	}
	fields := map[string]bool{}
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name := prefix + f.Name
			if f.Type.Kind() == reflect.Struct && f.Type.PkgPath() == typ.PkgPath() {
				walk(name+".", f.Type)
				continue
			}
			fields[name] = true
			if have[name] == (unpairedFields[name] != "") {
				t.Errorf("field %s: it must have either a switch or a reason for having none", name)
			}
		}
	}
	walk("", reflect.TypeFor[quirks.Quirks]())
	for name := range have {
		if !fields[name] {
			t.Errorf("no field %s", name)
		}
	}
	for name := range unpairedFields {
		if !fields[name] {
			t.Errorf("no field %s", name)
		}
	}
}
