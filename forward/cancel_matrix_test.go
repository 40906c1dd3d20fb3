package forward_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// A call that ends early leaves nothing. The matrix ends each operation at each
// request and each reply of its exchange, while the network loses, delays or
// duplicates that datagram. Afterwards the router has what the handle reports, or
// nothing if there is no handle, and after Shutdown nothing. This also holds if
// nothing ends the operation, and it fails because UPnP lost a request or a reply.
func TestCancellation(t *testing.T) {
	cancelMatrix(t, func(o *cancelOp, fails bool) []cancelEnd {
		if fails {
			return append(slices.Clip(o.ends), endNone)
		}
		return o.ends
	})
}

// The same faults without a cancellation: each operation succeeds.
func TestCancellationNone(t *testing.T) {
	cancelMatrix(t, func(_ *cancelOp, fails bool) []cancelEnd {
		if fails {
			return nil
		}
		return []cancelEnd{endNone}
	})
}

// cancelCases is how many cases run at once. They wait most of the time.
func cancelCases() int {
	if runtime.GOOS != "linux" {
		return 1 // all routers have one address, and UPnP asks an address one thing at a time
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

// cancelMatrix runs the cases of all operations, protocols and transports. The ends of
// an operation may depend on whether the fault alone makes it fail.
func cancelMatrix(t *testing.T, ends func(o *cancelOp, fails bool) []cancelEnd) {
	slots := make(chan struct{}, cancelCases())
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
	unprobed   bool // it also looks for the gateway
	enabled    bool // there is a mapping before
	// call returns when the operation is complete, or when it was ended.
	call func(ctx context.Context, c *cancelCase) error
}

func (o *cancelOp) listens() bool { return o.name == "Listen" }

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

// cancelTransport is what is mapped.
type cancelTransport struct {
	name   string
	option forward.Option
	listen func(ctx context.Context, f *forward.Forwarder) (io.Closer, *forward.Mapping, error)
}

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
		{name: "Enable without a probe", transports: transports[:1], ends: calls, unprobed: true, call: enable},
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
			close(c.listens)
			if err != nil {
				return err
			}
			return c.mapping.Wait(c.ctx)
		}},
	}
}

// runUntilMapped is Run with a context that ends when the mapping is granted.
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
	do   func(c *cancelCase) error // nil: by the context
}

var (
	endNone      = cancelEnd{name: "not ended"}
	endContext   = cancelEnd{name: "context"}
	endForwarder = cancelEnd{"Forwarder.Close", func(c *cancelCase) error { return c.f.Close() }}
	endMapping   = cancelEnd{"Mapping.Close", func(c *cancelCase) error { return c.mapping.Close() }}
	endListener  = cancelEnd{"Listener.Close", func(c *cancelCase) error { return c.listener.Close() }}
)

// cancelFault is what happens to a request or its reply at the moment of the end.
type cancelFault struct {
	name     string
	reply    bool // the end is when the reply is made, otherwise when the request arrives
	datagram bool // HTTP has no such fault
	lost     bool
	fault    func(hold <-chan struct{}) gatewaytest.Fault
}

// fails says that an operation may fail because of the fault.
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

// cancelRow is an operation by a protocol for a transport.
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
				ending := r.op.name == "Run" && i >= granted
				if ending && end.name == endContext.name {
					continue // it has ended before
				}
				name := fmt.Sprintf("%s %d, %s, %s", step.Name(), number, fault.name, end.name)
				cases.Go(func() {
					r.slots <- struct{}{}
					defer func() { <-r.slots }()
					t.Run(name, func(t *testing.T) {
						defer r.count.add(t)
						c := r.start(t)
						c.step, c.number, c.fault, c.end, c.ending = step, number, fault, end, ending
						c.run(t)
						if c.early {
							r.count.early.Add(1)
						}
					})
				})
			}
		}
	}
}

// steps returns the requests of the operation if nothing disturbs it, and how many of
// them Run sent before its context ended.
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
	c.settles(t)
	c.closes(t)
	return steps, granted
}

// cancelCase is one run of an operation, with a router of its own.
type cancelCase struct {
	*cancelRow
	gw       *gatewaytest.Gateway
	f        *forward.Forwarder
	ctx      context.Context //nolint:containedctx // bounds the case, as t does
	mapping  *forward.Mapping
	listener io.Closer
	listens  chan struct{} // closed when Listen has returned
	mapped   chan struct{} // closed by the first event
	granted  int           // requests before that

	step   gatewaytest.Request // the request that meets the fault
	number int                 // its number among those of the same name
	fault  cancelFault
	end    cancelEnd
	ending bool // Run has a mapping, and its context has ended
	early  bool // the operation was complete before that request
}

// start starts a router and a Forwarder, which searches only if the operation does.
func (r *cancelRow) start(t *testing.T) *cancelCase {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen: netip.AddrPortFrom(cancelAddr(), 0)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	c := &cancelCase{cancelRow: r, gw: gw, ctx: waiting(t), listens: make(chan struct{}), mapped: make(chan struct{})}
	mapped := sync.OnceFunc(func() {
		c.granted = len(gw.Requests())
		close(c.mapped)
	})
	nowhere := netip.MustParseAddrPort("127.0.0.1:0")
	config := forward.Config{
		Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP(), Announce: nowhere, Notify: nowhere},
		Protocols: []string{r.protocol}, OnEvent: func(forward.Event) { mapped() },
	}
	if !r.op.unprobed {
		config.UPnPURL = gw.UPnP().DescriptionURL()
	}
	if c.f, err = forward.New(&config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.f.Close() })
	for n := 1; !r.op.unprobed; n++ {
		if _, err = c.f.Gateway(c.ctx); err == nil {
			break
		}
		if n == 5 { // a busy machine may not answer in the time that a probe has
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

// run ends the operation at the moment of the fault, then undoes the fault and looks
// at what the router has.
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
			c.early = true
		}
	case <-c.ctx.Done():
		t.Fatal("the operation neither sent that request nor returned")
	}
	begun, ended := c.begin(cancel)
	select {
	case <-begun:
	case <-returned:
	case <-c.ctx.Done():
		t.Error("the operation goes on after its end")
	}
	release()
	await(t, c, c.op.name, returned)
	endErr := await(t, c, c.end.name, ended)
	switch {
	case c.early:
		remove()
	case c.step.Answered && !c.fault.lost:
		await(t, c, "the router", handled)
	}
	switch {
	case c.end.name == endNone.name && err != nil && !c.fault.fails(c.step):
		t.Errorf("%s: %v", c.op.name, err)
	case c.end.do == nil:
		c.settles(t)
	default:
		if endErr != nil {
			t.Errorf("%s: %v", c.end.name, endErr)
		}
		c.nothing(t, c.end.name)
	}
	c.closes(t)
}

// inject arms the fault. The first channel is closed at the moment of the end, the
// second when the router handled the request.
func (c *cancelCase) inject() (reached, handled <-chan struct{}, release, remove func()) {
	hold, reach, handle := make(chan struct{}), make(chan struct{}), make(chan struct{})
	handles := sync.OnceFunc(func() { close(handle) }) // a search has several replies
	fault := c.fault.fault(hold)
	fault.Times = 1
	var requests atomic.Int32
	fault.Match = func(q gatewaytest.Request) bool {
		if q.Name() != c.step.Name() || int(requests.Add(1)) != c.number {
			return false
		}
		if !c.fault.reply {
			close(reach)
		}
		return true
	}
	fault.Corrupt = func(reply []byte) []byte {
		handles()
		if c.fault.lost {
			return nil
		}
		return reply
	}
	reached, handled = reach, handle
	if c.fault.reply {
		reached = handle
	}
	return reached, handled, sync.OnceFunc(func() { close(hold) }), c.gw.Inject(fault)
}

// begin ends the operation. The first channel is closed when the end has begun, unless
// the operation returns then, the second receives its result.
func (c *cancelCase) begin(cancel context.CancelFunc) (begun <-chan struct{}, ended <-chan error) {
	result, begins := make(chan error, 1), make(chan struct{})
	listens := c.op.listens()
	switch {
	case c.end.do == nil:
		if c.end.name == endContext.name {
			cancel()
		}
		if c.end.name == endNone.name || listens {
			close(begins) // it goes on
		}
		result <- nil
		return begins, result
	case listens:
		<-c.listens
	}
	var changed <-chan struct{}
	if c.op.enabled || listens {
		changed = c.mapping.Changed()
	}
	go func() { result <- c.end.do(c) }()
	if c.ending {
		close(begins) // it may wait for the reply
		return begins, result
	}
	return changed, result
}

// await waits for something to be over, and returns its result.
func await[T any](t *testing.T, c *cancelCase, what string, over <-chan T) (result T) {
	t.Helper()
	select {
	case result = <-over:
	case <-c.ctx.Done():
		t.Fatalf("%s is not over", what)
	}
	return result
}

// settles waits until the router has what the handle reports.
func (c *cancelCase) settles(t *testing.T) {
	t.Helper()
	bound, cancel := context.WithTimeout(c.ctx, 8*time.Second)
	defer cancel()
	for {
		var changed <-chan struct{}
		if c.mapping != nil {
			changed = c.mapping.Changed()
		}
		seen := len(c.gw.Requests())
		want, got := c.reported(), c.table()
		if slices.Equal(got, want) {
			return
		}
		ctx, stop := context.WithCancel(bound)
		go func() {
			defer stop()
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}()
		_, _ = c.gw.AwaitRequests(ctx, seen+1, nil)
		stop()
		if bound.Err() != nil {
			t.Errorf("the router has %q, the handle reports %q", got, want)
			return
		}
	}
}

// reported is what the handle reports, if there is one.
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

// table is what the router has.
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

// closes closes the Forwarder.
func (c *cancelCase) closes(t *testing.T) {
	t.Helper()
	if err := c.f.Shutdown(c.ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if c.listener != nil {
		_ = c.listener.Close()
	}
	c.nothing(t, "Shutdown")
}

// nothing checks that the router has nothing. Datagrams that are on their way to it
// are handled before.
func (c *cancelCase) nothing(t *testing.T, after string) {
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
