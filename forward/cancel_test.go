package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestEnableCancelled cancels the context of Enable while a request is in flight. The
// gateway may still create the mapping. The Forwarder deletes it when the reply arrives,
// and Shutdown waits for the deletion.
func TestEnableCancelled(t *testing.T) {
	for name, c := range map[string]struct {
		enable forward.Option
		slow   string // the request that is in flight when the context is cancelled
		wait   time.Duration
	}{
		"deleted when the reply arrives":        {forward.TCP(8080), "map tcp", time.Minute},
		"deleted by Shutdown":                   {forward.TCP(8080), "map tcp", 0},
		"the second protocol of Both":           {forward.Both(8080), "map udp", time.Minute},
		"the second protocol of Both, Shutdown": {forward.Both(8080), "map udp", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newSlowGateway(t, map[string]time.Duration{c.slow: 300 * time.Millisecond})
				ctx, cancel := context.WithCancel(t.Context())
				enabled := make(chan error, 1)
				go func() {
					_, err := f.Enable(ctx, c.enable)
					enabled <- err
				}()
				synctest.Wait() // the request is in flight
				if len(d.live()) == 0 {
					t.Fatal("the gateway has no mapping before the context is cancelled")
				}
				cancel()
				if err := <-enabled; !errors.Is(err, context.Canceled) {
					t.Fatalf("Enable: %v, want %v", err, context.Canceled)
				}
				if c.wait > 0 {
					time.Sleep(c.wait)
					if live := d.live(); len(live) > 0 {
						t.Errorf("%v after the cancelled Enable the gateway has %v, want no mappings", c.wait, live)
					}
				}
				if err := f.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if live := d.live(); len(live) > 0 {
					t.Errorf("after Shutdown the gateway has %v, want no mappings", live)
				}
			})
		})
	}
}

// TestEnableCancelledByProtocol is TestEnableCancelled over each protocol: the router
// creates the mapping, and its reply arrives after the context of Enable was cancelled.
func TestEnableCancelledByProtocol(t *testing.T) {
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			gw, f := gatewayWithUPnP(t, forward.Config{Protocols: []string{protocol}}, gatewaytest.Config{})
			cancelDuringMap(t, gw, func(ctx context.Context) {
				if _, err := f.Enable(ctx, forward.TCP(8080)); !errors.Is(err, context.Canceled) {
					t.Errorf("Enable: %v, want %v", err, context.Canceled)
				}
			})
			wantEmptyAfterShutdown(t, gw, f)
		})
	}
}

// TestExternalIPCancelled cancels ExternalIP by PCP, which has no request for the
// external address: ExternalIP creates a mapping and deletes it. The Forwarder must
// delete the mapping even if the context is cancelled meanwhile.
func TestExternalIPCancelled(t *testing.T) {
	t.Run("while the mapping is requested", func(t *testing.T) {
		gw, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
		cancelDuringMap(t, gw, func(ctx context.Context) {
			if ip, err := f.ExternalIP(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("ExternalIP: %v, %v, want %v", ip, err, context.Canceled)
			}
		})
		wantEmptyAfterShutdown(t, gw, f)
	})
	t.Run("while the mapping is deleted", func(t *testing.T) {
		isUnmap := func(r gatewaytest.Request) bool { return r.Op == "unmap" }
		gw, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
		remove := gw.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			_, _ = f.ExternalIP(ctx) // it may succeed, because the address is known already
		}()
		if _, err := gw.AwaitRequests(testContext(t), 1, isUnmap); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-returned
		remove()
		wantEmptyAfterShutdown(t, gw, f)
	})
}

// cancelDuringMap calls call and cancels its context after the router created a mapping.
// The router sends the reply after call has returned.
func cancelDuringMap(t *testing.T, gw *gatewaytest.Gateway, call func(context.Context)) {
	t.Helper()
	hold, created := make(chan struct{}), make(chan struct{}, 1)
	remove := gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return r.Op == "map" },
		Hold:  hold,
		Corrupt: func(reply []byte) []byte { // called after the router created its reply
			select {
			case created <- struct{}{}:
			default:
			}
			return reply
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		call(ctx)
	}()
	select {
	case <-created:
	case <-testContext(t).Done():
		t.Error("no mapping was requested")
	}
	cancel()
	<-returned
	remove()
	close(hold)
}

// wantEmptyAfterShutdown closes the Forwarder, and checks that the router has no
// mappings.
func wantEmptyAfterShutdown(t *testing.T, gw *gatewaytest.Gateway, f *forward.Forwarder) {
	t.Helper()
	if err := f.Shutdown(testContext(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if table := gw.Table(); len(table) > 0 {
		t.Errorf("after Shutdown the router has %v, want no mappings", table)
	}
}

// TestCancellation checks that a call that ends early leaves no mapping. The matrix ends
// each operation at each request and each reply, while the network loses, delays or
// duplicates that datagram. Afterwards, the router has the mappings that the handle
// reports, or none if there is no handle. After Shutdown, the router has none. This also
// holds if an operation is not ended, but fails because UPnP lost a request or a reply.
func TestCancellation(t *testing.T) {
	cancelMatrix(t, func(o *cancelOp, fails bool) []cancelEnd {
		if fails {
			return append(slices.Clip(o.ends), endNone)
		}
		return o.ends
	})
}

// TestFaultsWithoutCancellation checks that each operation succeeds despite the same
// faults if it is not ended.
func TestFaultsWithoutCancellation(t *testing.T) {
	cancelMatrix(t, func(_ *cancelOp, fails bool) []cancelEnd {
		if fails {
			return nil
		}
		return []cancelEnd{endNone}
	})
}

// cancelConcurrency returns the number of concurrent cases. They wait most of the time.
func cancelConcurrency() int {
	if runtime.GOOS != "linux" {
		return 1 // all routers share one address, and UPnP sends one request at a time to an address
	}
	return 16
}

var cancelAddrs atomic.Uint32

// cancelAddr returns a loopback address that no other case has.
func cancelAddr() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	n := cancelAddrs.Add(1)
	return netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})
}

// cancelMatrix runs the cases of all operations, protocols and transports. ends returns
// the ways to end an operation. They may depend on whether the fault alone makes the
// operation fail.
func cancelMatrix(t *testing.T, ends func(o *cancelOp, fails bool) []cancelEnd) {
	slots := make(chan struct{}, cancelConcurrency())
	var operations sync.WaitGroup
	defer operations.Wait()
	for _, o := range cancelOps() {
		operations.Go(func() {
			t.Run(o.name, func(t *testing.T) {
				o.run(t, slots, func(fails bool) []cancelEnd { return ends(&o, fails) })
			})
		})
	}
}

// cancelOp is an operation that the matrix ends.
type cancelOp struct {
	name       string
	transports []cancelTransport
	ends       []cancelEnd
	probes     bool // the operation includes the probe of the gateway
	enabled    bool // a mapping is enabled before the operation
	// call returns when the operation is complete or has been ended.
	call func(ctx context.Context, c *cancelCase) error
}

// isListen reports whether the operation is Listen.
func (o *cancelOp) isListen() bool { return o.name == "Listen" }

// run runs the cases of the operation.
func (o *cancelOp) run(t *testing.T, slots chan struct{}, ends func(fails bool) []cancelEnd) {
	var count cancelCount
	var rows sync.WaitGroup
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		for _, transport := range o.transports {
			r := cancelRow{op: o, protocol: protocol, transport: transport, slots: slots, count: &count}
			rows.Go(func() {
				t.Run(protocol+" "+transport.name, func(t *testing.T) { r.run(t, ends) })
			})
		}
	}
	rows.Wait()
	cases, early := count.cases.Load(), count.early.Load()
	t.Logf("%s: %d cases, %d failed, %d complete before the fault", o.name, cases, count.failed.Load(), early)
	if 2*early > cases {
		t.Error("most operations were complete before the fault")
	}
}

// cancelTransport is a transport for which a port is mapped.
type cancelTransport struct {
	name   string
	option forward.Option
	listen func(ctx context.Context, f *forward.Forwarder) (io.Closer, *forward.Mapping, error)
}

// cancelOps returns the operations of the matrix.
func cancelOps() []cancelOp {
	transports := []cancelTransport{{"tcp", forward.TCP(8080), listenTCP}, {"udp", forward.UDP(8080), listenUDP}, {"both", forward.Both(8080), nil}}
	calls, handles := []cancelEnd{endContext, endForwarder}, []cancelEnd{endContext, endForwarder, endMapping}
	enable := func(ctx context.Context, c *cancelCase) (err error) {
		c.mapping, err = c.f.Enable(ctx, c.transport.option)
		return err
	}
	refresh := func(opts ...forward.Option) func(context.Context, *cancelCase) error {
		return func(ctx context.Context, c *cancelCase) error { return c.mapping.Refresh(ctx, opts...) }
	}
	return []cancelOp{
		{name: "Enable", transports: transports, ends: calls, call: enable},
		{name: "Enable without a probe", transports: transports[:1], ends: calls, probes: true, call: enable},
		{name: "Refresh", transports: transports, ends: handles, enabled: true, call: refresh()},
		{name: "Refresh with External", transports: transports, ends: handles, enabled: true, call: refresh(forward.External(9090))},
		{name: "Refresh with Lifetime", transports: transports, ends: handles, enabled: true, call: refresh(forward.Lifetime(time.Hour))},
		{name: "ExternalIP", transports: transports[:1], ends: calls, call: func(ctx context.Context, c *cancelCase) error {
			_, err := c.f.ExternalIP(ctx)
			return err
		}},
		{name: "Run", transports: transports, ends: calls, call: runUntilMapped},
		{name: "Listen", transports: transports[:2], ends: append(handles, endListener), call: func(ctx context.Context, c *cancelCase) (err error) {
			c.listener, c.mapping, err = c.transport.listen(ctx, c.f)
			close(c.listening)
			if err != nil {
				return err
			}
			return c.mapping.Wait(c.ctx)
		}},
	}
}

// runUntilMapped calls Run with a context that ends when the mapping is granted.
func runUntilMapped(ctx context.Context, c *cancelCase) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.mapped:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.f.Run(ctx, c.transport.option)
}

func listenTCP(ctx context.Context, f *forward.Forwarder) (io.Closer, *forward.Mapping, error) {
	ln, err := f.Listen(ctx, "tcp4", ":0")
	if err != nil {
		return nil, nil, err
	}
	return ln, ln.Mapping(), nil
}

func listenUDP(ctx context.Context, f *forward.Forwarder) (io.Closer, *forward.Mapping, error) {
	pc, err := f.ListenPacket(ctx, "udp4", ":0")
	if err != nil {
		return nil, nil, err
	}
	return pc, pc.Mapping(), nil
}

// cancelEnd ends an operation from another goroutine.
type cancelEnd struct {
	name string
	do   func(c *cancelCase) error // nil: the context ends it
}

var (
	endNone      = cancelEnd{name: "not ended"}
	endContext   = cancelEnd{name: "context"}
	endForwarder = cancelEnd{"Forwarder.Close", func(c *cancelCase) error { return c.f.Close() }}
	endMapping   = cancelEnd{"Mapping.Close", func(c *cancelCase) error { return c.mapping.Close() }}
	endListener  = cancelEnd{"Listener.Close", func(c *cancelCase) error { return c.listener.Close() }}
)

// cancelFault is a fault of a request or its reply at the moment when the operation is
// ended.
type cancelFault struct {
	name     string
	reply    bool // the operation is ended when the reply is created, otherwise when the request arrives
	datagram bool // the fault does not apply to HTTP
	lost     bool // the request or the reply is lost
	fault    func(hold <-chan struct{}) gatewaytest.Fault
}

// fails reports whether an operation may fail because of the fault.
func (f *cancelFault) fails(q gatewaytest.Request) bool { return f.lost && q.Service == "upnp" }

var cancelFaults = []cancelFault{
	{name: "request lost", lost: true, fault: func(<-chan struct{}) gatewaytest.Fault { return gatewaytest.Fault{Drop: true} }},
	{name: "request delayed", fault: func(hold <-chan struct{}) gatewaytest.Fault {
		return gatewaytest.Fault{HoldRequest: hold}
	}},
	{name: "request duplicated", datagram: true, fault: func(hold <-chan struct{}) gatewaytest.Fault {
		return gatewaytest.Fault{HoldRequest: hold, Repeat: 1}
	}},
	{name: "reply lost", reply: true, lost: true, fault: func(<-chan struct{}) gatewaytest.Fault { return gatewaytest.Fault{} }},
	{name: "reply delayed", reply: true, fault: func(hold <-chan struct{}) gatewaytest.Fault {
		return gatewaytest.Fault{Hold: hold}
	}},
	{name: "reply duplicated", reply: true, datagram: true, fault: func(hold <-chan struct{}) gatewaytest.Fault {
		return gatewaytest.Fault{Hold: hold, Duplicate: 1}
	}},
}

// cancelCount counts the cases of an operation.
type cancelCount struct{ cases, failed, early atomic.Int32 }

func (c *cancelCount) add(t *testing.T) {
	c.cases.Add(1)
	if t.Failed() {
		c.failed.Add(1)
	}
}

// cancelRow is an operation with one protocol and one transport.
type cancelRow struct {
	op        *cancelOp
	protocol  string
	transport cancelTransport
	slots     chan struct{}
	count     *cancelCount
}

// run runs the operation once without a fault, and then with each fault at each request.
func (r *cancelRow) run(t *testing.T, ends func(fails bool) []cancelEnd) {
	steps, granted := r.steps(t)
	numbers := map[string]int{}
	var cases sync.WaitGroup
	defer cases.Wait()
	for i, step := range steps {
		numbers[step.Name()]++
		number := numbers[step.Name()]
		for _, fault := range cancelFaults {
			if fault.reply && !step.Answered || fault.datagram && step.Service == "upnp" {
				continue
			}
			for _, end := range ends(fault.fails(step)) {
				runEnding := r.op.name == "Run" && i >= granted
				if runEnding && end.name == endContext.name {
					continue // the context has ended already
				}
				name := fmt.Sprintf("%s %d, %s, %s", step.Name(), number, fault.name, end.name)
				cases.Go(func() {
					r.slots <- struct{}{}
					defer func() { <-r.slots }()
					t.Run(name, func(t *testing.T) {
						defer r.count.add(t)
						c := r.start(t)
						c.step, c.number, c.fault, c.end, c.runEnding = step, number, fault, end, runEnding
						c.run(t)
						if c.completedEarly {
							r.count.early.Add(1)
						}
					})
				})
			}
		}
	}
}

// steps returns the requests of the operation without a fault, and how many of them Run
// sent before its context ended.
func (r *cancelRow) steps(t *testing.T) (steps []gatewaytest.Request, granted int) {
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	c := r.start(t)
	if err := r.op.call(t.Context(), c); err != nil {
		t.Fatalf("%s without a fault: %v", r.op.name, err)
	}
	steps = c.gw.Requests()
	if r.op.name == "Run" {
		<-c.mapped
		granted = c.granted
	}
	c.awaitConsistent(t)
	c.shutdown(t)
	return steps, granted
}

// cancelCase is one run of an operation with its own router.
type cancelCase struct {
	*cancelRow
	gw        *gatewaytest.Gateway
	f         *forward.Forwarder
	ctx       context.Context //nolint:containedctx // limits the duration of the case
	mapping   *forward.Mapping
	listener  io.Closer
	listening chan struct{} // closed when Listen has returned
	mapped    chan struct{} // closed by the first event
	granted   int           // number of requests before the first event

	step           gatewaytest.Request // the request that is subject to the fault
	number         int                 // its number among the requests with the same name
	fault          cancelFault
	end            cancelEnd
	runEnding      bool // the context of Run has ended after the mapping was granted
	completedEarly bool // the operation was complete before the request
}

// start starts a router and a Forwarder. The Forwarder searches for the gateway only if
// the operation includes a probe.
func (r *cancelRow) start(t *testing.T) *cancelCase {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen: netip.AddrPortFrom(cancelAddr(), 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	c := &cancelCase{cancelRow: r, gw: gw, ctx: testContext(t), listening: make(chan struct{}), mapped: make(chan struct{})}
	mapped := sync.OnceFunc(func() {
		c.granted = len(gw.Requests())
		close(c.mapped)
	})
	noReceiver := netip.MustParseAddrPort("127.0.0.1:0")
	config := forward.Config{
		Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP(), Announce: noReceiver, Notify: noReceiver},
		Protocols: []string{r.protocol}, OnEvent: func(forward.Event) { mapped() },
	}
	if !r.op.probes {
		config.UPnPURL = gw.UPnP().DescriptionURL()
	}
	if c.f, err = forward.New(&config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.f.Close() })
	for n := 1; !r.op.probes; n++ {
		if _, err = c.f.Gateway(c.ctx); err == nil {
			break
		}
		if n == 5 { // on a busy machine, a probe may time out
			t.Fatal(err)
		}
	}
	if r.op.enabled {
		if c.mapping, err = c.f.Enable(c.ctx, r.transport.option); err != nil {
			t.Fatal(err)
		}
	}
	gw.ResetStats()
	return c
}

// run ends the operation at the moment of the fault, then removes the fault and checks
// the table of the router.
func (c *cancelCase) run(t *testing.T) {
	reached, handled, release, remove := c.inject()
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var err error
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		err = c.op.call(ctx, c)
	}()
	select {
	case <-reached:
	case <-returned:
		select {
		case <-reached:
		default:
			c.completedEarly = true
		}
	case <-c.ctx.Done():
		t.Fatal("the operation neither sent the request nor returned")
	}
	started, ended := c.startEnd(cancel)
	select {
	case <-started:
	case <-returned:
	case <-c.ctx.Done():
		t.Error("the operation continues after it was ended")
	}
	release()
	awaitResult(t, c, c.op.name, returned)
	endErr := awaitResult(t, c, c.end.name, ended)
	switch {
	case c.completedEarly:
		remove()
	case c.step.Answered && !c.fault.lost:
		awaitResult(t, c, "the router", handled)
	}
	switch {
	case c.end.name == endNone.name && err != nil && !c.fault.fails(c.step):
		t.Errorf("%s: %v", c.op.name, err)
	case c.end.do == nil:
		c.awaitConsistent(t)
	default:
		if endErr != nil {
			t.Errorf("%s: %v", c.end.name, endErr)
		}
		c.wantEmptyTable(t, c.end.name)
	}
	c.shutdown(t)
}

// inject injects the fault. The first channel is closed when the operation is to be
// ended, and the second one when the router has handled the request.
func (c *cancelCase) inject() (reached, handled <-chan struct{}, release, remove func()) {
	hold, reachedChan, handledChan := make(chan struct{}), make(chan struct{}), make(chan struct{})
	markHandled := sync.OnceFunc(func() { close(handledChan) }) // a search gets several replies
	fault := c.fault.fault(hold)
	fault.Times = 1
	var requests atomic.Int32
	fault.Match = func(q gatewaytest.Request) bool {
		if q.Name() != c.step.Name() || int(requests.Add(1)) != c.number {
			return false
		}
		if !c.fault.reply {
			close(reachedChan)
		}
		return true
	}
	fault.Corrupt = func(reply []byte) []byte {
		markHandled()
		if c.fault.lost {
			return nil
		}
		return reply
	}
	reached, handled = reachedChan, handledChan
	if c.fault.reply {
		reached = handledChan
	}
	return reached, handled, sync.OnceFunc(func() { close(hold) }), c.gw.Inject(fault)
}

// startEnd ends the operation. The first channel is closed when the end has started,
// unless the operation returns at that moment. The second channel receives the result.
func (c *cancelCase) startEnd(cancel context.CancelFunc) (started <-chan struct{}, ended <-chan error) {
	result, start := make(chan error, 1), make(chan struct{})
	isListen := c.op.isListen()
	switch {
	case c.end.do == nil:
		if c.end.name == endContext.name {
			cancel()
		}
		if c.end.name == endNone.name || isListen {
			close(start) // the operation continues
		}
		result <- nil
		return start, result
	case isListen:
		<-c.listening
	}
	var changed <-chan struct{}
	if c.op.enabled || isListen {
		changed = c.mapping.Changed()
	}
	go func() { result <- c.end.do(c) }()
	if c.runEnding {
		close(start) // the operation may wait for the reply
		return start, result
	}
	return changed, result
}

// awaitResult waits for a result and returns it.
func awaitResult[T any](t *testing.T, c *cancelCase, name string, done <-chan T) (result T) {
	t.Helper()
	select {
	case result = <-done:
	case <-c.ctx.Done():
		t.Fatalf("%s has not returned", name)
	}
	return result
}

// awaitConsistent waits until the router has the mappings that the handle reports.
func (c *cancelCase) awaitConsistent(t *testing.T) {
	t.Helper()
	limitedCtx, cancel := context.WithTimeout(c.ctx, 8*time.Second)
	defer cancel()
	for {
		var changed <-chan struct{}
		if c.mapping != nil {
			changed = c.mapping.Changed()
		}
		count := len(c.gw.Requests())
		want, got := c.reported(), c.table()
		if slices.Equal(got, want) {
			return
		}
		ctx, stop := context.WithCancel(limitedCtx)
		go func() {
			defer stop()
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}()
		_, _ = c.gw.AwaitRequests(ctx, count+1, nil)
		stop()
		if limitedCtx.Err() != nil {
			t.Errorf("the router has %q, the handle reports %q", got, want)
			return
		}
	}
}

// reported returns the mappings that the handle reports, if there is a handle.
func (c *cancelCase) reported() (out []string) {
	if c.mapping == nil {
		return nil
	}
	for _, g := range c.mapping.Grants() {
		out = append(out, cancelEntry(g.Protocol, g.External, g.Internal))
	}
	slices.Sort(out)
	return out
}

// table returns the mappings of the router.
func (c *cancelCase) table() (out []string) {
	for _, e := range c.gw.Table() {
		out = append(out, cancelEntry(e.Protocol, e.External, e.Internal))
	}
	slices.Sort(out)
	return out
}

func cancelEntry(p backends.Protocol, external, internal netip.AddrPort) string {
	return fmt.Sprintf("%v %d to %d", p, external.Port(), internal.Port())
}

// shutdown closes the Forwarder, and checks that the router has no mappings.
func (c *cancelCase) shutdown(t *testing.T) {
	t.Helper()
	if err := c.f.Shutdown(c.ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if c.listener != nil {
		_ = c.listener.Close()
	}
	c.wantEmptyTable(t, "Shutdown")
}

// wantEmptyTable checks that the router has no mappings. It first exchanges a datagram
// with the router, so that all earlier datagrams have been handled.
func (c *cancelCase) wantEmptyTable(t *testing.T, after string) {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(c.ctx, "udp4", c.gw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(c.ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if got := c.table(); len(got) > 0 {
		t.Errorf("after %s the router has %q", after, got)
	}
}
