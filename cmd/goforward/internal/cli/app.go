package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/netbind"
	"github.com/spf13/cobra"
)

// Run executes a command line, without the program's name, and returns the exit
// code. The end of the context is the interrupt: it ends whatever is under way,
// and lets map --hold take its mapping away.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return newApp(stdout, stderr).run(ctx, args)
}

// app is one execution.
type app struct {
	stdout, stderr *stream
	settings       settings
	parsed        bool // the command line was understood

	// What the outside world is asked through.
	protocols []protocol
	keyFile func() (string, error)
	defaultRoutes  func() (all, used []discover.Gateway, err error)
	currentRoute  func(*settings) route
	watchNetwork func(ctx context.Context, notify func()) error // discover.Watch

	pollInterval time.Duration // how often watch asks
	logWarnings      bool          // also without -v
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{
		stdout:  newStream(stdout),
		stderr:  newStream(stderr),
		protocols: protocols,
		keyFile: keyFile,
		defaultRoutes:  systemDefaultRoutes,
		currentRoute:  currentRoute,
		watchNetwork: discover.Watch,

		pollInterval: pollInterval,
	}
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would be those of the process
	err := root.ExecuteContext(ctx)
	// That the output cannot be written is not to be taken for a word of cobra's.
	if failure := a.stdout.writeError(); failure != nil && (err == nil || !a.parsed) {
		err = failure
	} else if err != nil && !a.parsed {
		err = usageErrorOf(err)
		a.settings.json = a.settings.json || slices.Contains(args, "--json")
	}
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		usage.command = helpCommand(root, args)
	}
	return a.reportError(ctx, err)
}

// understood makes what cobra says of a command line an error of ours.
func usageErrorOf(err error) error {
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return err
	}
	return usagef("%v", err)
}

// commandOf is what to ask for help about.
func helpCommand(root *cobra.Command, args []string) string {
	if cmd, _, err := root.Find(args); err == nil {
		return cmd.CommandPath()
	}
	return root.CommandPath()
}

// root is the whole tree of commands, with no state but the app's.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:     "goforward",
		Short:   "Ask your router to forward a port to this host",
		Long:    rootHelp,
		Version: version(),
		PersistentPreRun: func(*cobra.Command, []string) {
			a.parsed = true
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.Flags().SortFlags = false
	a.settings.register(root, a.protocols)
	root.AddCommand(a.mapCommand(), a.unmapCommand(), a.listCommand(), a.ipCommand(), a.gatewaysCommand(),
		a.watchCommand(), a.demoCommand())
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error { // cobra would print what it does not know, and exit with 0
			_, _, err := root.Find(args)
			return err
		}
	}
	return root
}

// version is that of the module, as the go command recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown version)"
}

// settings are the flags of every command.
type settings struct {
	gateway   netip.AddrPort
	iface     string
	source    netip.Addr
	igd       string
	backends     []string
	timeout   time.Duration
	announce  netip.AddrPort
	ssdp      netip.AddrPort
	notify    netip.AddrPort
	json      bool
	verbosity int
}

// register makes the settings flags of a command and all below it.
func (s *settings) register(cmd *cobra.Command, openers []protocol) {
	f := cmd.PersistentFlags()
	f.SortFlags = false
	f.VarP(&flagValue[netip.AddrPort]{target: &s.gateway, typeName: "ADDR[:PORT]", parse: parseEndpoint}, "gateway", "g",
		"gateway to ask (default: the one that leads to the internet)")
	f.StringVar(&s.iface, "interface", "", "`NAME` of the interface to leave by")
	f.Var(&flagValue[netip.Addr]{target: &s.source, typeName: "ADDR", parse: parseAddr}, "source",
		"local address to ask from, which is the one that gets the mappings")
	f.Var(&flagValue[string]{target: &s.igd, typeName: "URL", parse: parseIGD}, "igd-url",
		"description of the UPnP device to use; its host is the gateway where none is named")
	f.Var(&flagValue[[]string]{target: &s.backends, typeName: "NAMES", parse: backendListParser(openers)}, "backend",
		"protocols to speak, separated by commas, the preferred first: "+strings.Join(protocolNames(openers), ", "))
	f.Var(&flagValue[time.Duration]{target: &s.timeout, typeName: "SECONDS", parse: parseSeconds}, "timeout",
		"how long to wait for the gateway: seconds, or a duration such as 500ms")
	f.BoolVar(&s.json, "json", false, "one JSON object a line on stdout")
	f.CountVarP(&s.verbosity, "verbose", "v", "tell on stderr what happens; -vv tells all")
	// For gateways that are tests: those of a network are where the standards say.
	f.Var(&flagValue[netip.AddrPort]{target: &s.announce, typeName: "ADDR:PORT", parse: parseEndpoint}, "announce",
		"where to listen for announcements")
	f.Var(&flagValue[netip.AddrPort]{target: &s.ssdp, typeName: "ADDR:PORT", parse: parseEndpoint}, "ssdp",
		"where to search for UPnP devices")
	f.Var(&flagValue[netip.AddrPort]{target: &s.notify, typeName: "ADDR:PORT", parse: parseEndpoint}, "notify",
		"where to listen for notifications of UPnP devices")
	for _, name := range []string{"announce", "ssdp", "notify"} {
		_ = f.MarkHidden(name)
	}
	_ = cmd.RegisterFlagCompletionFunc("backend", completeList(protocolNames(openers)))
	_ = cmd.RegisterFlagCompletionFunc("interface", completeInterfaces)
	for _, name := range []string{"gateway", "source", "igd-url", "timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// orderParser reads a list of protocols.
func backendListParser(openers []protocol) func(string) ([]string, error) {
	return func(s string) ([]string, error) {
		known := protocolNames(openers)
		var order []string
		for name := range strings.SplitSeq(s, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); !slices.Contains(known, name) {
				return nil, fmt.Errorf("no backend %q: there is %s", name, strings.Join(known, ", "))
			}
			if !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
		return order, nil
	}
}

// named is the gateway that was, or the zero value.
func (s *settings) namedGateway() netip.AddrPort {
	if host, err := igdHost(s.igd); err == nil && !s.gateway.IsValid() {
		return netip.AddrPortFrom(host, 0)
	}
	return s.gateway
}

// checkSource refuses a source address that this host does not have.
func (s *settings) checkSource() error {
	if s.source.IsValid() && !netbind.HasAddr(s.source) {
		return usagef("--source %v is not an address of this host", s.source)
	}
	return nil
}

// config is what the facade is told. A timeout that was asked for bounds the
// whole call and the discovery within it.
func (a *app) config() *forward.Config {
	s := &a.settings
	return &forward.Config{
		DiscoveryTimeout: s.timeout, RequestTimeout: s.timeout, Protocols: s.backends, Gateway: s.namedGateway(),
		Interface: s.iface, Source: s.source, UPnPURL: s.igd,
		Test: forward.TestNetwork{Announce: s.announce, SSDP: s.ssdp, Notify: s.notify}, Logger: a.logger(),
	}
}

// logger is nil where nobody asked for one.
func (a *app) logger() *slog.Logger {
	level := slog.LevelInfo
	switch a.settings.verbosity {
	case 0:
		if !a.logWarnings {
			return nil
		}
		level = slog.LevelWarn
	case 1:
	default:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

func completeList(values []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeInterfaces(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, ifi := range interfaces {
		names = append(names, ifi.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
