package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/netbind"
	"github.com/natforward/goforward/reach/reflector"
)

// reflectPort is the port of reflect if --listen names none.
const reflectPort = 8099

// countInterval is the interval of the counts that reflect prints.
const countInterval = time.Hour

// reflectFlags are the flags of reflect.
type reflectFlags struct {
	listen     netip.AddrPort // the zero Addr means all addresses
	dialFrom   []netip.Addr
	trustProxy []netip.Prefix
	allow      []netip.Prefix
	deny       []netip.Prefix
	tokenFile  string
	certFile   string
	keyFile    string
}

func (a *app) reflectCommand() *cobra.Command {
	var rf reflectFlags
	cmd := &cobra.Command{
		Use:               "reflect",
		Short:             "Help hosts to verify their ports: connect back to them, until Ctrl-C",
		Long:              reflectHelp,
		Example:           reflectExamples,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkNoGateway(cmd, "source", "timeout"); err != nil {
				return err
			}
			for _, name := range fileFlags {
				if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" { // an empty variable of a script must not switch TLS off
					return usagef("--%s names no file", name)
				}
			}
			return a.reflect(cmd.Context(), &rf)
		},
	}
	rf.register(cmd)
	return cmd
}

// fileFlags are the flags of reflect that name a file.
var fileFlags = []string{"token-file", "cert", "key"}

// checkNoGateway returns an error if a flag about the gateway, or one of these, is given for a command
// that uses no gateway.
func checkNoGateway(cmd *cobra.Command, more ...string) error {
	for _, name := range append([]string{"gateway", "interface", "igd-url", "backend", "fresh"}, more...) {
		if cmd.Flags().Changed(name) {
			return usagef("%s uses no gateway: --%s has no meaning here", cmd.Name(), name)
		}
	}
	return nil
}

// register adds the flags to reflect.
func (rf *reflectFlags) register(cmd *cobra.Command) {
	rf.listen = netip.AddrPortFrom(netip.Addr{}, reflectPort)
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&flagValue[netip.AddrPort]{target: &rf.listen, typeName: "ADDR:PORT", parse: parseListen, text: ":" + strconv.Itoa(reflectPort)}, "listen",
		"address and port to listen on; without an address, all of this host")
	f.Var(&flagValue[[]netip.Addr]{target: &rf.dialFrom, typeName: "ADDR", parse: rf.addDialFrom}, "dial-from",
		"address of this host to connect from; one for IPv4 and one for IPv6")
	for _, list := range []struct {
		name, usage string
		target      *[]netip.Prefix
	}{
		{"trust-proxy", "believe X-Forwarded-For in requests of this proxy, as in 127.0.0.1", &rf.trustProxy},
		{"allow", "also help hosts with these addresses that are not public", &rf.allow},
		{"deny", "do not help hosts with these addresses", &rf.deny},
	} {
		f.Var(&flagValue[[]netip.Prefix]{target: list.target, typeName: "CIDR", parse: func(s string) ([]netip.Prefix, error) {
			p, err := parsePrefix(s)
			return append(slices.Clone(*list.target), p), err
		}}, list.name, list.usage+"; may be repeated")
		_ = cmd.RegisterFlagCompletionFunc(list.name, cobra.NoFileCompletions)
	}
	f.StringVar(&rf.tokenFile, "token-file", "", "the first line of this `FILE` is the token that gives details")
	f.StringVar(&rf.certFile, "cert", "", "use TLS, with the certificate in this `FILE`; a renewed one is read again")
	f.StringVar(&rf.keyFile, "key", "", "`FILE` with the private key of --cert")
	for _, name := range fileFlags {
		_ = cmd.RegisterFlagCompletionFunc(name, completeFiles)
	}
	for _, name := range []string{"listen", "dial-from"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// parseListen reads ADDR, ADDR:PORT, :PORT or PORT.
func parseListen(s string) (netip.AddrPort, error) {
	if port, err := strconv.ParseUint(strings.TrimPrefix(s, ":"), 10, 16); err == nil {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
	}
	if host, ok := strings.CutSuffix(s, ":"); ok && !strings.HasSuffix(host, ":") {
		return netip.AddrPort{}, errListen
	}
	at, err := parseEndpoint(s)
	if err != nil || at.Addr().IsMulticast() {
		return netip.AddrPort{}, errListen
	}
	if _, err := netip.ParseAddrPort(s); err != nil { // without a port
		at = netip.AddrPortFrom(at.Addr(), reflectPort)
	}
	return at, nil
}

var errListen = errors.New("want ADDRESS:PORT with an IP address, :PORT or ADDRESS")

// addDialFrom returns the addresses with one more.
func (rf *reflectFlags) addDialFrom(s string) ([]netip.Addr, error) {
	addr, err := parseSource(s)
	if err == nil && slices.ContainsFunc(rf.dialFrom, func(other netip.Addr) bool { return other.Is4() == addr.Is4() }) {
		err = errors.New("want at most one address of each family")
	}
	return append(slices.Clone(rf.dialFrom), addr), err
}

// parsePrefix reads a range of addresses, or one address.
func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() {
		return p.Masked(), nil
	}
	addr, err := parseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, errors.New("want a range of addresses, as in 192.0.2.0/24 or 2001:db8::/32, or an address")
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// reflect serves until ctx ends.
func (a *app) reflect(ctx context.Context, rf *reflectFlags) error {
	a.logWarnings = true
	config, tlsConfig, err := a.reflectConfig(rf)
	if err != nil {
		return err
	}
	h, err := reflector.New(config)
	if err != nil {
		return err
	}
	ln, err := listenFor(ctx, rf.listen)
	if err != nil {
		return err
	}
	begun := time.Now()
	a.printReflecting(ln.Addr(), rf, begun)
	ctx, cancel := context.WithCancel(ctx)
	var counting sync.WaitGroup
	counting.Go(func() {
		defer cancel() // the output cannot be written
		a.reportCounts(ctx, begun, h.Stats)
	})
	err = h.Serve(ctx, ln, tlsConfig)
	cancel()
	counting.Wait()
	a.printCounts(begun, h.Stats())
	return err
}

// reflectConfig returns the configuration of the reflector, and of TLS, or nil without TLS.
func (a *app) reflectConfig(rf *reflectFlags) (reflector.Config, *tls.Config, error) {
	config := reflector.Config{DialFrom: rf.dialFrom, TrustProxy: rf.trustProxy, Allow: rf.allow, Deny: rf.deny, Log: a.reflectLogger()}
	for _, addr := range rf.dialFrom {
		if !netbind.HasAddr(addr) {
			return config, nil, usagef("--dial-from %v is not an address of this host", addr)
		}
	}
	if rf.tokenFile != "" {
		token, err := a.readToken(rf.tokenFile)
		if err != nil {
			return config, nil, usagef("--token-file: %v", err)
		}
		config.Token = token
	}
	if (rf.certFile == "") != (rf.keyFile == "") {
		return config, nil, usagef("--cert and --key belong together: name both files")
	}
	if rf.certFile == "" {
		return config, nil, nil
	}
	c, err := newCertificate(rf.certFile, rf.keyFile, func(err error) {
		a.failuref("%s The certificate is not renewed: %s\n", clockText(time.Now()), oneLine(errorText(err)))
	})
	if err != nil {
		return config, nil, usagef("--cert, --key: %v", err)
	}
	return config, &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}, nil
}

// reflectLogger returns a logger that has the requests with -v.
func (a *app) reflectLogger() *slog.Logger {
	if a.settings.verbosity == 0 {
		return a.logger()
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// maxToken is the largest length of a token.
const maxToken = 256

// readToken reads the token of the operator. It warns if other users can read it.
func (a *app) readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() { // opening a FIFO could wait without an end
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o006 != 0 { // Windows has no such permissions
		a.failuref("Every user of this host can read or change the token: chmod 600 %s\n", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxToken+16))
	if err != nil {
		return "", err
	}
	line, rest, _ := strings.Cut(string(text), "\n")
	token := strings.TrimSpace(line)
	switch isOther := func(r rune) bool { return r <= ' ' || r > '~' }; {
	case strings.ContainsFunc(token, isOther) || strings.TrimSpace(rest) != "":
		return "", fmt.Errorf("%s has more than a token: want one line of visible ASCII characters without spaces", path)
	case len(token) < reflector.MinToken || len(token) > maxToken:
		return "", fmt.Errorf("the token in %s has %d characters, want %d to %d: openssl rand -hex 16", path, len(token), reflector.MinToken, maxToken)
	}
	return token, nil
}

// listenFor opens the socket of the reflector.
func listenFor(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	network, text := "tcp", at.String()
	switch {
	case !at.Addr().IsValid():
		text = ":" + strconv.Itoa(int(at.Port()))
	case at.Addr().Is4():
		network = "tcp4" // else 0.0.0.0 would include IPv6
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, text)
	advice := ""
	switch {
	case err == nil:
		return ln, nil
	case errno.IsInUse(err):
		advice = arrow + "another program uses the port: name another one with --listen"
	case errors.Is(err, os.ErrPermission) && at.Port() < 1024:
		advice = arrow + "name a port above 1023 with --listen, or give the program the capability CAP_NET_BIND_SERVICE"
	case at.Addr().IsValid() && !netbind.HasAddr(at.Addr()) && !at.Addr().IsUnspecified():
		advice = arrow + fmt.Sprintf("%v is not an address of this host", at.Addr())
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return nil, fmt.Errorf("cannot listen on %s: %w%s", text, err, advice)
}

// reflectingRecord says that the reflector is ready.
type reflectingRecord struct {
	Event  string       `json:"event"`
	Time   string       `json:"time"`
	Listen jsonEndpoint `json:"listen"`
	TLS    bool         `json:"tls"`
}

// printReflecting prints the address of the reflector, and how to use it.
func (a *app) printReflecting(addr net.Addr, rf *reflectFlags, at time.Time) {
	listen, _ := netip.ParseAddrPort(addr.String()) // the address of a TCP socket is valid
	isTLS := rf.certFile != ""
	if a.settings.json {
		a.printJSON(reflectingRecord{"reflecting", jsonTime(at), jsonEndpointOf(listen), isTLS})
	} else {
		a.resultf("%v\n", listen)
	}
	host, scheme, kind := "HOST", "http", "plain HTTP without encryption"
	if isTLS {
		scheme, kind = "https", "HTTP with TLS"
	}
	if ip := listen.Addr(); !ip.IsUnspecified() && !isTLS { // a certificate has a name
		host = ip.String()
	}
	via := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(listen.Port())))
	if len(rf.trustProxy) > 0 {
		via = "URL, with the URL of the proxy"
	}
	a.messagef("Reflector ready, with %s. Ctrl-C ends it. On another host: goforward verify PORT --via %s\n", kind, via)
	if rf.tokenFile != "" {
		a.messagef("For details, put the token into %s there.\n", tokenVariable)
	}
}

// reportCounts prints the counts in each interval in which they change, until ctx ends or the output
// cannot be written.
func (a *app) reportCounts(ctx context.Context, begun time.Time, stats func() reflector.Stats) {
	var last reflector.Stats
	for pause(ctx, countInterval, a.stdout.broken) == nil {
		if now := stats(); now != last {
			a.printCounts(begun, now)
			last = now
		}
	}
}

// reflectedRecord has the counts of a reflector since its start.
type reflectedRecord struct {
	Event    string `json:"event"`
	Time     string `json:"time"`
	Since    string `json:"since"`
	Requests uint64 `json:"requests"`
	Refused  uint64 `json:"refused"`
	Limited  uint64 `json:"limited"`
	Busy     uint64 `json:"busy"`
	Probes   uint64 `json:"probes"`
	Echoed   uint64 `json:"echoed"`
}

// printCounts prints the counts since the start.
func (a *app) printCounts(begun time.Time, s reflector.Stats) {
	now := time.Now()
	if a.settings.json {
		a.printJSON(reflectedRecord{"reflected", jsonTime(now), jsonTime(begun), s.Requests, s.Refused, s.Limited, s.Busy, s.Probes, s.Echoed})
	}
	if a.settings.verbosity > 0 {
		return // the log has the counts
	}
	a.messagef("%s Since %s: %d requests, of which %d were refused, %d were too many of a host and %d too many of all; %d probes, of which %d were echoed.\n",
		clockText(now), begun.Local().Format(time.DateTime), s.Requests, s.Refused, s.Limited, s.Busy, s.Probes, s.Echoed)
}
