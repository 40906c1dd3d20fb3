package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func (a *app) mapCommand() *cobra.Command {
	var (
		w spec
		k holdFlags
	)
	cmd := &cobra.Command{
		Use:               "map [[EXTERNAL:]INTERNAL[/PROTOCOL] | PUBLIC PRIVATE]",
		Short:             "Forward a port of the gateway to this host",
		Long:              mapHelp,
		Example:           mapExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.parseArgs(args); err != nil {
				return err
			}
			if err := a.setFamily(&w); err != nil {
				return err
			}
			if err := k.check(cmd); err != nil {
				return err
			}
			if err := k.checkPortFile(); err != nil {
				return err
			}
			if err := a.settings.checkSource(); err != nil && !k.wait { // with --wait, it may come later
				return err
			}
			if k.hold {
				return a.hold(cmd.Context(), &w, &k)
			}
			return a.mapOnce(cmd.Context(), &w, &k)
		},
	}
	w.register(cmd)
	k.register(cmd)
	return cmd
}

// portArgs judges the arguments of map and unmap before anything else happens.
func checkPortArgs(_ *cobra.Command, args []string) error {
	_, err := parsePorts(args)
	return err
}

// mapOnce leaves a mapping for its lifetime.
func (a *app) mapOnce(ctx context.Context, w *spec, k *holdFlags) error {
	config := a.config()
	config.NonceKey = a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	m, err := f.Enable(ctx, w.options()...)
	if err != nil {
		return explainInterrupt(ctx, err)
	}
	status := m.Status()
	m.Leave()
	granted := status.Grants
	if len(granted) == 0 {
		return fmt.Errorf("%w: the gateway granted the mapping and lost it at once", backends.ErrNoReply)
	}
	a.printMapped(granted)
	a.messagef("%s, by %s, %s\n", mappingText(granted), backendText(granted[0]), expiryText(status.Expires))
	a.printRemarks(w, granted)
	if file := a.newPortFile(k.portFile); file != nil {
		err := file.write(ctx, granted[0].External.Port())
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: the mapping stays for its lifetime, and its port is not written to %s\n  → goforward unmap removes it", errInterrupted, k.portFile)
		}
		if err != nil {
			return fmt.Errorf("the mapping stays for its lifetime, but its port is not written: %w", err)
		}
	}
	return nil
}

// mapFailure explains an interrupt: what was asked for may be on its way.
func explainInterrupt(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: what the gateway granted meanwhile stays for its lifetime\n  → goforward unmap takes it away", errInterrupted)
	}
	return err
}

// mapped prints what was asked for.
func (a *app) printMapped(granted []backends.Mapping) {
	if a.settings.json {
		a.printRecords("mapped", granted, mappingRecord{})
		return
	}
	a.resultf("%s\n", endpointText(granted[0].External))
}

// remark adds what somebody should know who relies on the mapping.
func (a *app) printRemarks(w *spec, granted []backends.Mapping) {
	external := granted[0].External
	if w.external != 0 && external.Port() != w.external {
		a.messagef("The gateway gave external port %d in place of %d.\n", external.Port(), w.external)
	}
	switch scope := backends.ScopeOf(external.Addr()); {
	case external.Addr().Is6() && scope != backends.ScopePublic:
		a.messagef("%v is not an address of the internet.\n", external.Addr())
	case scope == backends.ScopeUnknown:
		a.messagef("The gateway does not tell its external address.\n")
	case scope == backends.ScopePrivate:
		a.messagef("%v is not an address of the internet: another NAT stands before the gateway.\n", external.Addr())
	case scope == backends.ScopeShared:
		a.messagef("%v is an address that the provider shares out: its own NAT stands before the gateway.\n", external.Addr())
	}
	if w.from.Addr().IsValid() {
		a.messagef("The gateway says that it keeps others than %s out: try it, not all do.\n", endpointText(w.from))
	}
	firewall := "This host's own firewall"
	if w.to.IsValid() {
		firewall = fmt.Sprintf("The firewall of %v", w.to)
	}
	a.messagef("%s must let %s port %d in too.\n", firewall, protocolsText(granted), granted[0].Internal.Port())
}

// arrow is a mapping in a few words; the mappings of a unit differ in the
// protocol only.
func mappingText(ms []backends.Mapping) string {
	return fmt.Sprintf("%s %s → %v", protocolsText(ms), endpointText(ms[0].External), ms[0].Internal)
}

func protocolsText(ms []backends.Mapping) string {
	var names []string
	for _, m := range ms {
		names = append(names, m.Protocol.String())
	}
	return strings.Join(names, "+")
}

func backendText(m backends.Mapping) string {
	return m.Backend + " at " + endpointText(m.Gateway)
}

func expiryText(expires time.Time) string {
	if expires.IsZero() {
		return "without an end"
	}
	return "until " + expires.Local().Format(time.DateTime)
}

// endpointText leaves out what is not known: the address of a gateway that does
// not tell, or the port that is the protocol's own.
func endpointText(ap netip.AddrPort) string {
	switch {
	case ap == netip.AddrPort{}:
		return ""
	case !ap.Addr().IsValid():
		return fmt.Sprintf(":%d", ap.Port())
	case ap.Port() == 0:
		return ap.Addr().String()
	}
	return ap.String()
}
