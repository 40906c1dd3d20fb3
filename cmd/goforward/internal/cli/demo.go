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

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/errno"
	"github.com/spf13/cobra"
)

const (
	demoPort     = 8080             // outside
	demoPatience = 10 * time.Second // for what takes milliseconds
	demoGreeting = "hello from behind the router"
)

func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Watch it work, on a router made for the occasion",
		Long:    demoHelp,
		Example: demoExamples,
		Args:    cobra.NoArgs,

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n := cmd.Flags().NFlag(); n > 1 || n == 1 && !cmd.Flags().Changed("backend") {
				return usagef("demo takes no flags but --backend: its router is its own")
			}
			return a.demo(cmd.Context())
		},
	}
	cmd.SetUsageFunc(demoUsage)
	return cmd
}

// demoUsage leaves the flags out, which are for real routers. It is no template:
// with text/template the linker keeps every method of every type.
func demoUsage(cmd *cobra.Command) error {
	_, err := fmt.Fprintf(cmd.OutOrStderr(), "Usage:\n  %s\n\nExamples:\n%s\n", cmd.UseLine(), cmd.Example)
	return err
}

// demo is a play in five acts: a router, a server behind it, and a visitor.
func (a *app) demo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	d := &demonstration{app: a, events: make(chan forward.Event, 16)}
	defer d.close()
	for _, act := range []func(context.Context) error{
		d.start, d.visitBefore, d.enable, d.visit, d.restart, d.visit, d.disable, d.visitAfter,
	} {
		if err := act(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	a.printf("\nNothing is left. With your own router: goforward gateways, then goforward map 8080.\n")
	return nil
}

// demonstration is what takes part.
type demonstration struct {
	app       *app
	gateway   *gatewaytest.Gateway
	server    *demoServer
	forwarder *forward.Forwarder
	mapping   *forward.Mapping
	events    chan forward.Event
	step      int
}

// close ends what start began, in whatever state it is.
func (d *demonstration) close() {
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

// title begins a step.
func (d *demonstration) title(format string, args ...any) {
	d.step++
	d.app.printf("\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

// line is something in a step, under a heading.
func (d *demonstration) line(what, format string, args ...any) {
	d.app.printf("   %-8s %s\n", what, fmt.Sprintf(format, args...))
}

// external is what the world is told.
func (d *demonstration) external() netip.AddrPort {
	return netip.AddrPortFrom(d.gateway.External(), demoPort)
}

func (d *demonstration) start(ctx context.Context) error {
	var err error
	if d.gateway, err = gatewaytest.Start(gatewaytest.Config{}); err != nil {
		return err
	}
	if d.server, err = startDemoServer(ctx); err != nil {
		return err
	}
	d.forwarder, err = forward.New(&forward.Config{
		Gateway: d.gateway.Addr(), Protocols: d.app.settings.order,
		Test: forward.TestNetwork{Announce: d.gateway.AnnounceAddr(), SSDP: d.gateway.SSDP(), Notify: d.gateway.NotifyAddr()},
		OnEvent: func(e forward.Event) {
			select {
			case d.events <- e:
			default: // many more than the play has
			}
		},
	})
	if err != nil {
		return err
	}
	d.app.printf("A router, within this process, with an internet of its own on the other side.\n\n")
	d.line("inside", "%-17v a little web server", d.server.addr())
	d.line("router", "%-17v speaks NAT-PMP, PCP and UPnP", d.gateway.Addr())
	d.line("outside", "%-17v the router's address on the internet", d.gateway.External())
	return nil
}

func (d *demonstration) visitBefore(ctx context.Context) error {
	d.title("Somebody on the internet knocks")
	return d.turnedAway(ctx)
}

func (d *demonstration) enable(ctx context.Context) (err error) {
	internal := d.server.addr().Port()
	d.title("Ask the router to forward port %d", demoPort)
	d.line("shell", "goforward map %d:%d --hold", demoPort, internal)
	d.line("Go", "m, err := forward.Enable(forward.TCP(%d), forward.External(%d))", internal, demoPort)
	d.mapping, err = d.forwarder.Enable(ctx, forward.TCP(internal), forward.External(demoPort))
	if err != nil {
		return err
	}
	m := d.mapping.Grants()[0]
	d.line("router", "%v → %v, for %v; renewed long before", m.External, m.Internal, hours(m.Lifetime))
	_, err = d.await(ctx, forward.EventMapped)
	return err
}

func (d *demonstration) restart(ctx context.Context) error {
	d.title("The router restarts, and forgets")
	start := time.Now()
	d.gateway.Restart(gatewaytest.RestartOptions{})
	lost, err := d.await(ctx, forward.EventLost)
	if err != nil {
		return err
	}
	d.line("lost", "%s", lost.Reason)
	if _, err := d.await(ctx, forward.EventRestored); err != nil {
		return err
	}
	d.line("restored", "%v → %v, after %v", d.mapping.External(), d.mapping.Internal(), time.Since(start).Round(100*time.Microsecond))
	return nil
}

// await returns the next event, which is to be of a kind.
func (d *demonstration) await(ctx context.Context, kind forward.EventKind) (forward.Event, error) {
	select {
	case e := <-d.events:
		if e.Kind != kind {
			return e, fmt.Errorf("the mapping was %v where it should have been %v", e.Kind, kind)
		}
		return e, nil
	case <-ctx.Done():
		return forward.Event{}, fmt.Errorf("the mapping should have been %v by now: %w", kind, ctx.Err())
	}
}

func (d *demonstration) disable(context.Context) error {
	d.title("Take it away again")
	d.line("shell", "Ctrl-C, or goforward unmap %d", d.server.addr().Port())
	d.line("Go", "forward.Disable()")
	return d.mapping.Close()
}

func (d *demonstration) visitAfter(ctx context.Context) error {
	if n := len(d.gateway.Table()); n != 0 {
		return fmt.Errorf("%d mappings are left", n)
	}
	return d.turnedAway(ctx)
}

// turnedAway is a visit that must fail.
func (d *demonstration) turnedAway(ctx context.Context) error {
	conn, err := d.gateway.Dial(ctx, "tcp", d.external().String())
	switch {
	case err == nil:
		_ = conn.Close()
		return errors.New("the server can be reached where it should not")
	case !errors.Is(err, errno.ECONNREFUSED):
		return err
	}
	d.line("visitor", "dials %v: connection refused", d.external())
	return nil
}

// visit must succeed, with bytes both ways.
func (d *demonstration) visit(ctx context.Context) error {
	conn, err := d.gateway.Dial(ctx, "tcp", d.external().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	reply, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	_, body, _ := strings.Cut(string(reply), "\r\n\r\n")
	if body = strings.TrimSpace(body); body != demoGreeting {
		return fmt.Errorf("the visitor got %q", body)
	}
	d.line("visitor", "GET http://%v/ → %q", d.external(), body)
	return nil
}

// hours is a lifetime without the zeros that Duration.String ends with.
func hours(d time.Duration) string {
	if d%time.Hour == 0 && d > time.Hour {
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}

// demoServer answers every request with a greeting.
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

// serve takes one visitor after another.
func (s *demoServer) serve() {
	defer close(s.done)
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(demoPatience))
		if r := bufio.NewReader(conn); readRequest(r) == nil {
			_, _ = io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\n"+demoGreeting+"\n")
		}
		_ = conn.Close()
	}
}

// readRequest reads to the empty line.
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
