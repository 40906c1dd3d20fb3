package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/netbind"
	"github.com/natforward/goforward/reach"
)

// Run executes a command line, without the name of the program, and returns the exit code. If
// ctx is cancelled, the command is interrupted: the running requests stop, and map --hold
// deletes its mapping.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return newApp(stdout, stderr).run(ctx, args)
}

// app is one execution of the program.
type app struct {
	stdout, stderr *stream
	settings       settings
	parsed         bool                // the command line was parsed
	command        string              // the name of the command
	spec           *spec               // what map or unmap is to do; nil for other commands
	stopNotice     func()              // ends the notice that the command waits
	recorded       []rememberedGateway // the file of memoryFile, as this run read it

	// Access to the system and the network; tests replace these fields.
	protocols     []protocol
	keyFile       func() (string, error)
	memoryFile    func() (string, error)
	lookupHost    func(ctx context.Context, host string) ([]netip.Addr, error)
	defaultRoutes func() (all, used []discover.Gateway, err error)
	currentRoute  func(*settings) route
	routeTo       func(netip.Addr) (discover.Gateway, error)            // discover.Route
	watchNetwork  func(ctx context.Context, notify func()) error        // discover.Watch
	listeners     func(backends.Protocol, uint16) ([]netip.Addr, error) // reach.Listeners
	keptBy        func(backends.Mapping) string                         // the other program that keeps a mapping; "": none
	measure       measureFunc
	repairMapping func(context.Context, *portCheck) error // replaces the repair of verify --every; nil: none
	signals       *signalHandler
	isTerminal    func() bool // stderr is a terminal

	pollInterval time.Duration // interval between two requests of watch for the address
	logWarnings  bool          // log warnings without -v too
}

func newApp(stdout, stderr io.Writer) *app {
	a := &app{
		stdout:        newStream(stdout),
		stderr:        newStream(stderr),
		protocols:     protocols,
		keyFile:       keyFile,
		memoryFile:    memoryFile,
		lookupHost:    lookupHost,
		defaultRoutes: systemDefaultRoutes,
		currentRoute:  currentRoute,
		routeTo:       discover.Route,
		watchNetwork:  discover.Watch,
		listeners:     reach.Listeners,
		measure:       measurePort,
		signals:       newSignalHandler(),

		pollInterval: pollInterval,
	}
	a.isTerminal, a.keptBy = a.stderrIsTerminal, a.otherHolder
	return a
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	a.stopNotice = func() {}
	err := root.ExecuteContext(ctx)
	a.stopNotice()
	// If writing to stdout fails within cobra, the error is not a usage error.
	verdict := verdictError(0)
	if failure := a.stdout.writeError(); failure != nil && (err == nil || !a.parsed || errors.As(err, &verdict)) {
		err = failure
	} else if err != nil && !a.parsed {
		err = usageErrorOf(err)
		a.settings.json = a.settings.json || slices.Contains(args, "--json")
	}
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		explainUsage(root, args, usage)
	}
	return a.reportError(ctx, err)
}

// usageErrorOf converts an error that cobra returned to a usage error.
func usageErrorOf(err error) error {
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return err
	}
	return usagef("%v", err)
}

// root returns the whole tree of commands. Its only state is the app.
func (a *app) root() *cobra.Command {
	showVersion := false
	root := &cobra.Command{
		Use:   "goforward",
		Short: "Ask your router to forward a port to this host",
		Long:  rootHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				a.printVersion()
				return nil
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.parsed, a.command = true, cmd.Name()
			if err := a.settings.check(); err != nil {
				return err
			}
			a.stopNotice = a.startNotice()
			return a.resolveGateway(cmd.Context(), cmd)
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.Flags().SortFlags = false
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	a.settings.register(root, a.protocols)
	root.AddCommand(a.mapCommand(), a.verifyCommand(), a.unmapCommand(), a.listCommand(), a.ipCommand(), a.gatewaysCommand(),
		a.watchCommand(), a.runCommand(), a.probeCommand(), a.reflectCommand(), a.demoCommand(), a.versionCommand())
	root.SetHelpCommand(a.helpCommand(root))
	root.InitDefaultHelpCmd()
	root.SetUsageFunc(printUsage)
	return root
}

// settings are the flags that all commands share.
type settings struct {
	gateway     netip.AddrPort
	gatewayName hostPort // name of the gateway, until resolveGateway sets gateway
	iface       string
	source      netip.Addr
	igd         string
	backends    []string
	fresh       bool
	timeout     time.Duration
	announce    netip.AddrPort
	ssdp        netip.AddrPort
	notify      netip.AddrPort
	json        bool
	quiet       bool
	verbosity   int
}

// check returns an error if the flags do not fit together.
func (s *settings) check() error {
	if s.quiet && s.verbosity > 0 {
		return usagef("--quiet and --verbose are given: use one of them")
	}
	return nil
}

// register adds the flags to a command and its subcommands.
func (s *settings) register(cmd *cobra.Command, known []protocol) {
	f := cmd.PersistentFlags()
	f.SortFlags = false
	f.VarP(&flagValue[netip.AddrPort]{target: &s.gateway, typeName: "HOST[:PORT]", parse: s.parseGateway}, "gateway", "g",
		"address or name of the gateway (default: of the default route)")
	f.StringVar(&s.iface, "interface", "", "send requests from the interface with this `NAME`")
	f.Var(&flagValue[netip.Addr]{target: &s.source, typeName: "ADDR", parse: parseSource}, "source",
		"local address to send requests from, and to forward to")
	f.Var(&flagValue[string]{target: &s.igd, typeName: "URL", parse: parseIGD}, "igd-url",
		"URL of the UPnP device description to use")
	f.Var(&flagValue[[]string]{target: &s.backends, typeName: "NAMES", parse: backendListParser(known)}, "backend",
		"protocols to use, the preferred one first: "+strings.Join(protocolNames(known), ","))
	f.BoolVar(&s.fresh, "fresh", false, "ignore which protocol the gateway supported in earlier runs")
	f.Var(&flagValue[time.Duration]{target: &s.timeout, typeName: "SECONDS", parse: parseSeconds}, "timeout",
		"time limit, also 0.5 or 2m (default: gateways 3s, list 1m, else 15s)")
	f.BoolVar(&s.json, "json", false, "print one JSON object per line on stdout")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "print only results and failures, no remarks and no progress")
	f.CountVarP(&s.verbosity, "verbose", "v", "log to stderr; -vv also logs each request and reply")
	// For test gateways only: the gateways of a real network use the standard addresses.
	f.Var(&flagValue[netip.AddrPort]{target: &s.announce, typeName: "ADDR:PORT", parse: parseEndpoint}, "announce",
		"address to listen on for announcements")
	f.Var(&flagValue[netip.AddrPort]{target: &s.ssdp, typeName: "ADDR:PORT", parse: parseEndpoint}, "ssdp",
		"address to search for UPnP devices")
	f.Var(&flagValue[netip.AddrPort]{target: &s.notify, typeName: "ADDR:PORT", parse: parseEndpoint}, "notify",
		"address to listen on for notifications of UPnP devices")
	for _, name := range []string{"announce", "ssdp", "notify"} {
		_ = f.MarkHidden(name)
	}
	_ = cmd.RegisterFlagCompletionFunc("backend", completeList(protocolNames(known)))
	_ = cmd.RegisterFlagCompletionFunc("interface", completeInterfaces)
	for _, name := range []string{"gateway", "source", "igd-url", "timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// parseGateway reads the value of --gateway. If it is a host name, the result is the zero value.
func (s *settings) parseGateway(text string) (addr netip.AddrPort, err error) {
	addr, s.gatewayName, err = parseGateway(text)
	return addr, err
}

// namedGateway returns the address from --gateway or --igd-url, or the zero value.
func (s *settings) namedGateway() netip.AddrPort {
	if host, err := igdHost(s.igd); err == nil && !s.gateway.IsValid() {
		return netip.AddrPortFrom(host, 0)
	}
	return s.gateway
}

// checkSource returns an error if this host does not have the --source address, or cannot send
// from the --interface.
func (s *settings) checkSource() error {
	if s.source.IsValid() && !netbind.HasAddr(s.source) {
		return usagef("--source %v is not an address of this host", s.source)
	}
	return s.checkInterface()
}

// config returns the configuration of the Forwarder. --timeout bounds the whole call,
// including discovery.
func (a *app) config() *forward.Config {
	s := &a.settings
	return &forward.Config{
		DiscoveryTimeout: s.timeout, RequestTimeout: s.timeout, Protocols: s.backends, Gateway: s.namedGateway(),
		Interface: s.iface, Source: s.source, UPnPURL: s.igd, Choices: a.remembered(),
		Test: forward.TestNetwork{Announce: s.announce, SSDP: s.ssdp, Notify: s.notify}, Logger: a.logger(),
	}
}

// logger returns nil if nothing is to be logged.
func (a *app) logger() *slog.Logger {
	level := slog.LevelInfo
	switch a.settings.verbosity {
	case 0:
		if !a.logWarnings {
			return nil
		}
		level = slog.LevelWarn // also with --quiet: a warning is about a failure
	case 1:
	default:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}
