package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func (a *app) mapCommand() *cobra.Command {
	var (
		s  spec
		hf holdFlags
	)
	cmd := &cobra.Command{
		Use:               "map [[EXTERNAL:]INTERNAL[/PROTOCOL] | EXTERNAL INTERNAL]",
		Short:             "Forward a port of the gateway to this host",
		Long:              mapHelp,
		Example:           mapExamples,
		Args:              checkPortArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.parseArgs(args); err != nil {
				return err
			}
			if err := a.setFamily(&s); err != nil {
				return err
			}
			if err := hf.check(cmd); err != nil {
				return err
			}
			if err := hf.checkPortFile(); err != nil {
				return err
			}
			if err := a.settings.checkSource(); err != nil && !hf.wait { // with --wait, the host may get the address later
				return err
			}
			if hf.hold {
				return a.hold(cmd.Context(), &s, &hf)
			}
			return a.mapOnce(cmd.Context(), &s, &hf)
		},
	}
	s.register(cmd)
	hf.register(cmd)
	return cmd
}

// checkPortArgs checks the arguments of map and unmap before anything else happens.
func checkPortArgs(_ *cobra.Command, args []string) error {
	_, err := parsePorts(args)
	return err
}

// mapOnce creates a mapping that stays for its lifetime.
func (a *app) mapOnce(ctx context.Context, s *spec, hf *holdFlags) error {
	config := a.config()
	config.NonceKey = a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	m, err := f.Enable(ctx, s.options()...)
	if err != nil {
		return explainInterrupt(ctx, err)
	}
	status := m.Status()
	m.Leave()
	granted := status.Grants
	if len(granted) == 0 {
		return fmt.Errorf("%w: the gateway granted the mapping and lost it at once; run map again", backends.ErrNoReply)
	}
	a.printMapped(granted)
	a.messagef("%s, by %s, %s\n", mappingText(granted), backendText(granted[0]), expiryText(status.Expires))
	a.printRemarks(s, granted)
	if file := a.newPortFile(hf.portFile); file != nil {
		err := file.write(ctx, granted[0].External.Port())
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: the mapping stays for its lifetime, and its port is not written to %s\n  → goforward unmap deletes it", errInterrupted, hf.portFile)
		}
		if err != nil {
			return fmt.Errorf("the mapping stays for its lifetime, but its port is not written: %w", err)
		}
	}
	return nil
}

// explainInterrupt explains the error of an interrupted map: the gateway may still create the
// mapping.
func explainInterrupt(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: if the gateway still creates the mapping, it stays for its lifetime\n  → goforward unmap deletes it", errInterrupted)
	}
	return err
}

// printMapped prints the result of map.
func (a *app) printMapped(granted []backends.Mapping) {
	if a.settings.json {
		a.printRecords("mapped", granted, mappingRecord{})
		return
	}
	a.resultf("%s\n", endpointText(granted[0].External))
}

// printOtherDevice prints a remark if a mapping is not on the gateway of the default route, or
// not on the named one, but on a UPnP device of another host.
func (a *app) printOtherDevice(m backends.Mapping) {
	gateway, device := a.currentRoute(&a.settings).gateway.Addr(), m.Gateway.Addr()
	if gateway.Is4() && device.Is4() && device != gateway && a.settings.igd == "" {
		a.messagef("The UPnP device at %v is used. It is not the gateway, %v: connections may not pass through it.\n", device, gateway)
	}
}

// printRemarks prints what the user should know about the mapping.
func (a *app) printRemarks(s *spec, granted []backends.Mapping) {
	a.printOtherDevice(granted[0])
	external := granted[0].External
	if s.external != 0 && external.Port() != s.external {
		a.messagef("The gateway granted external port %d instead of %d.\n", external.Port(), s.external)
	}
	switch scope := backends.ScopeOf(external.Addr()); {
	case external.Addr().Is6() && scope != backends.ScopePublic:
		a.messagef("%v is not a public address.\n", external.Addr())
	case scope == backends.ScopeUnknown:
		a.messagef("The gateway does not report its external address.\n")
	case scope == backends.ScopePrivate:
		a.messagef("%v is not a public address: another NAT is between the gateway and the internet.\n", external.Addr())
	case scope == backends.ScopeShared:
		a.messagef("%v is a shared address: the provider's NAT is between the gateway and the internet.\n", external.Addr())
	}
	if s.from.Addr().IsValid() {
		a.messagef("The gateway accepted the request to admit only %s. Test it: not every gateway keeps other hosts out.\n", endpointText(s.from))
	}
	firewall := "This host's own firewall"
	if s.to.IsValid() {
		firewall = fmt.Sprintf("The firewall of %v", s.to)
	}
	a.messagef("%s must also let %s port %d in.\n", firewall, protocolsText(granted), granted[0].Internal.Port())
}
