package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/reach"
)

// probeWait is how long probe waits if --timeout is not given.
const probeWait = 5 * time.Second

func (a *app) probeCommand() *cobra.Command {
	var call dialback.Call
	cmd := &cobra.Command{
		Use:               "probe ADDRESS:PORT[/udp]",
		Short:             "Connect to a port once, from this host",
		Long:              probeHelp,
		Example:           probeExamples,
		Args:              checkProbeArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := checkNoGateway(cmd)
			if err != nil {
				return err
			}
			if call.To, call.Protocol, err = parseProbe(args[0]); err != nil {
				return err
			}
			switch {
			case call.Want != "" && call.Nonce == "":
				return usagef("--want needs --nonce: a program answers only a nonce that it knows")
			case call.Want != "" && call.Want == call.Nonce:
				return usagef("--want and --nonce are equal: a program that repeats everything would seem to know the answer")
			case call.Nonce == "" && call.Protocol == backends.UDP:
				call.Nonce = reach.NewNonce()
			}
			return a.probe(cmd.Context(), call)
		},
	}
	f := cmd.Flags()
	f.Var(&flagValue[string]{target: &call.Nonce, typeName: "TEXT", parse: parseNonce}, "nonce",
		"send this nonce; default: nothing by TCP, a random one by UDP")
	f.Var(&flagValue[string]{target: &call.Want, typeName: "TEXT", parse: parseNonce}, "want",
		"expect this nonce in the answer")
	for _, name := range []string{"nonce", "want"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

func checkProbeArgs(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%d ports are named: name one, as in goforward probe 198.51.100.7:8080", len(args))
	}
	return nil
}

// parseProbe reads the port to which probe connects.
func parseProbe(s string) (to netip.AddrPort, p backends.Protocol, err error) {
	endpoint, name, named := strings.Cut(s, "/")
	p = backends.TCP
	if named {
		if p, err = backends.ParseProtocol(strings.ToLower(name)); err != nil || p != backends.TCP && p != backends.UDP {
			return to, p, usagef("probe connects to TCP and UDP ports, not %q", name)
		}
	}
	to, err = netip.ParseAddrPort(endpoint)
	if addr := to.Addr(); err != nil || to.Port() == 0 || addr.IsUnspecified() || addr.IsMulticast() {
		return to, p, usagef("%q is not a port of a host: want ADDRESS:PORT with an IP address, as in 198.51.100.7:8080, [2001:db8::7]:8080 or 198.51.100.7:27015/udp", s)
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), p, nil
}

// parseNonce reads a nonce. Other texts are never sent.
func parseNonce(s string) (string, error) {
	if !dialback.IsNonce(s) {
		return "", fmt.Errorf("want 16 random bytes in base64url, which are %d characters", dialback.NonceLength)
	}
	return s, nil
}

// probe connects once, and prints the source and the outcome.
func (a *app) probe(ctx context.Context, call dialback.Call) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	if call.From = a.settings.source; call.From.IsValid() && call.From.Is4() != call.To.Addr().Is4() {
		return usagef("--source %v and %v have different address families", call.From, call.To)
	}
	bounded, cancel := context.WithTimeout(ctx, cmp.Or(a.settings.timeout, probeWait))
	defer cancel()
	r := probeRecord{Event: "probing", Protocol: call.Protocol, To: jsonEndpointOf(call.To)}
	outcome, rtt, err := call.Do(bounded, func(from netip.AddrPort) {
		r.From = jsonEndpointOf(from)
		if a.settings.json {
			a.printJSON(r)
		} else {
			a.resultf("from %v\n", from)
		}
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return usagef("the time was over before the connection began: want --timeout of more than 100ms")
	case err != nil:
		return err
	case a.settings.json:
		r.Event, r.Result, r.RTT = "probed", string(outcome), float64(rtt.Microseconds())/1000
		a.printJSON(r)
	default:
		a.resultf("%s\n", outcome)
	}
	if outcome == dialback.Refused || outcome == dialback.TimedOut {
		return verdictError(exitUnreachable)
	}
	return nil
}

// probeRecord is the source or the outcome of probe in JSON.
type probeRecord struct {
	Event    string            `json:"event"`
	Protocol backends.Protocol `json:"protocol"`
	To       jsonEndpoint      `json:"to"`
	From     jsonEndpoint      `json:"from"`
	Result   string            `json:"result,omitempty"`
	RTT      float64           `json:"rtt_ms,omitempty"`
}
