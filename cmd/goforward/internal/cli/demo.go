package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/errno"
)

const (
	demoPort     = 8080             // external port
	demoTimeout  = 10 * time.Second // bounds the demo, which takes milliseconds
	demoGreeting = "hello from behind the router"
)

func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Show a mapping on a simulated router",
		Long:    demoHelp,
		Example: demoExamples,
		Args:    cobra.NoArgs,

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n := cmd.Flags().NFlag(); n > 1 || n == 1 && !cmd.Flags().Changed("backend") {
				return usagef("demo takes no flag except --backend: its router is simulated")
			}
			return a.demo(cmd.Context())
		},
	}
	return cmd
}

// demo shows a mapping on a simulated router, with a server behind the router and a visitor on
// the internet.
func (a *app) demo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	d := &demoSession{app: a, events: make(chan forward.Event, 16)}
	defer d.close()
	for _, step := range []func(context.Context) error{
		d.start, d.checkClosedBefore, d.enable, d.visit, d.restart, d.visit, d.disable, d.checkClosedAfter,
	} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	a.resultf("\nNothing is left. With your own router: goforward gateways, then goforward map 8080.\n")
	return nil
}

// demoSession is the state of the demo.
type demoSession struct {
	app       *app
	gateway   *gatewaytest.Gateway
	server    *demoServer
	forwarder *forward.Forwarder
	mapping   *forward.Mapping
	events    chan forward.Event
	step      int
}

// close closes what start has opened so far.
func (d *demoSession) close() {
	if d.forwarder != nil {
		_ = d.forwarder.Close()
	}
	if d.server != nil {
		d.server.close()
	}
	if d.gateway != nil {
		_ = d.gateway.Close()
	}
}

// printStep prints the title of the next step.
func (d *demoSession) printStep(format string, args ...any) {
	d.step++
	d.app.resultf("\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

// printLine prints one line of a step, after a label.
func (d *demoSession) printLine(label, format string, args ...any) {
	d.app.resultf("   %-8s %s\n", label, fmt.Sprintf(format, args...))
}

// externalEndpoint returns the external endpoint of the mapping.
func (d *demoSession) externalEndpoint() netip.AddrPort {
	return netip.AddrPortFrom(d.gateway.External(), demoPort)
}

func (d *demoSession) start(ctx context.Context) error {
	var err error
	if d.gateway, err = gatewaytest.Start(gatewaytest.Config{}); err != nil {
		return err
	}
	if d.server, err = startDemoServer(ctx); err != nil {
		return err
	}
	d.forwarder, err = forward.New(&forward.Config{
		Gateway: d.gateway.Addr(), Protocols: d.app.settings.backends,
		Test: forward.TestNetwork{Announce: d.gateway.AnnounceAddr(), SSDP: d.gateway.SSDP(), Notify: d.gateway.NotifyAddr()},
		OnEvent: func(e forward.Event) {
			select {
			case d.events <- e:
			default: // the channel has room for all events of the demo
			}
		},
	})
	if err != nil {
		return err
	}
	d.app.resultf("A simulated router within this process, with a simulated internet on the other side.\n\n")
	d.printLine("inside", "%-17v a small web server", d.server.addr())
	d.printLine("router", "%-17v supports NAT-PMP, PCP and UPnP", d.gateway.Addr())
	d.printLine("outside", "%-17v the router's address on the internet", d.gateway.External())
	return nil
}

func (d *demoSession) checkClosedBefore(ctx context.Context) error {
	d.printStep("A visitor connects from the internet")
	return d.checkRefused(ctx)
}

func (d *demoSession) enable(ctx context.Context) (err error) {
	internal := d.server.addr().Port()
	d.printStep("Ask the router to forward port %d", demoPort)
	d.printLine("shell", "goforward map %d:%d --hold", demoPort, internal)
	d.printLine("Go", "m, err := forward.Enable(forward.TCP(%d), forward.External(%d))", internal, demoPort)
	d.mapping, err = d.forwarder.Enable(ctx, forward.TCP(internal), forward.External(demoPort))
	if err != nil {
		return err
	}
	m := d.mapping.Grants()[0]
	d.printLine("router", "%v → %v, for %v; renewed before it ends", m.External, m.Internal, hours(m.Lifetime))
	_, err = d.await(ctx, forward.EventMapped)
	return err
}

func (d *demoSession) restart(ctx context.Context) error {
	d.printStep("The router restarts and loses the mapping")
	start := time.Now()
	d.gateway.Restart(gatewaytest.RestartOptions{})
	lost, err := d.await(ctx, forward.EventLost)
	if err != nil {
		return err
	}
	d.printLine("lost", "%s", lost.Reason)
	if _, err := d.await(ctx, forward.EventRestored); err != nil {
		return err
	}
	d.printLine("restored", "%v → %v, after %v", d.mapping.External(), d.mapping.Internal(), time.Since(start).Round(100*time.Microsecond))
	return nil
}

// await returns the next event, which must be of the given kind.
func (d *demoSession) await(ctx context.Context, kind forward.EventKind) (forward.Event, error) {
	select {
	case e := <-d.events:
		if e.Kind != kind {
			return e, fmt.Errorf("the mapping is %v, want %v", e.Kind, kind)
		}
		return e, nil
	case <-ctx.Done():
		return forward.Event{}, fmt.Errorf("the mapping is not %v yet: %w", kind, ctx.Err())
	}
}

func (d *demoSession) disable(context.Context) error {
	d.printStep("Delete the mapping")
	d.printLine("shell", "Ctrl-C, or goforward unmap %d", d.server.addr().Port())
	d.printLine("Go", "forward.Disable()")
	return d.mapping.Close()
}

func (d *demoSession) checkClosedAfter(ctx context.Context) error {
	if n := len(d.gateway.Table()); n != 0 {
		return fmt.Errorf("%d mappings are left on the router", n)
	}
	return d.checkRefused(ctx)
}

// checkRefused checks that the router refuses a connection from the internet.
func (d *demoSession) checkRefused(ctx context.Context) error {
	conn, err := d.gateway.Dial(ctx, "tcp", d.externalEndpoint().String())
	switch {
	case err == nil:
		_ = conn.Close()
		return errors.New("the visitor reached the server without a mapping")
	case !errors.Is(err, errno.ECONNREFUSED):
		return err
	}
	d.printLine("visitor", "dials %v: connection refused", d.externalEndpoint())
	return nil
}

// visit connects from the internet and checks the response of the server.
func (d *demoSession) visit(ctx context.Context) error {
	conn, err := d.gateway.Dial(ctx, "tcp", d.externalEndpoint().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	response, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	_, body, _ := strings.Cut(string(response), "\r\n\r\n")
	if body = strings.TrimSpace(body); body != demoGreeting {
		return fmt.Errorf("the visitor received %q", body)
	}
	d.printLine("visitor", "GET http://%v/ → %q", d.externalEndpoint(), body)
	return nil
}

// hours formats a lifetime. It omits the zero minutes and seconds of Duration.String.
func hours(d time.Duration) string {
	if d%time.Hour == 0 && d > time.Hour {
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}

// demoServer is a web server that responds to every request with a greeting.
type demoServer struct {
	ln   net.Listener
	done chan struct{}
}

func startDemoServer(ctx context.Context) (*demoServer, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &demoServer{ln: ln, done: make(chan struct{})}
	go s.serve()
	return s, nil
}

func (s *demoServer) addr() netip.AddrPort {
	return netip.MustParseAddrPort(s.ln.Addr().String())
}

// serve handles one connection after another.
func (s *demoServer) serve() {
	defer close(s.done)
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(demoTimeout))
		if r := bufio.NewReader(conn); readRequest(r) == nil {
			_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+demoGreeting+"\n")
		}
		_ = conn.Close()
	}
}

// readRequest reads up to the empty line.
func readRequest(r *bufio.Reader) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			return err
		}
	}
}

func (s *demoServer) close() {
	_ = s.ln.Close()
	<-s.done
}
