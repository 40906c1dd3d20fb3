package cli

import (
	"context"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func (a *app) ipCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ip",
		Short:   "Print the gateway's external address",
		Long:    ipHelp,
		Example: ipExamples,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.ip(cmd.Context()) },
	}
}

func (a *app) ip(ctx context.Context) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	defer a.close(f)
	addr, err := f.ExternalIP(ctx)
	if err != nil {
		return err
	}
	gateway, err := f.Gateway(ctx) // the Forwarder cached it: nothing is sent
	if err != nil {
		return err
	}
	scope := backends.ScopeOf(addr)
	if a.settings.json {
		a.printJSON(ipRecord{"ip", addr, scope, endpointText(gateway.Addr)})
	} else {
		a.resultf("%v\n", addr)
	}
	a.printScope(addr)
	return nil
}

// ipRecord is the external address in JSON.
type ipRecord struct {
	Event   string         `json:"event"`
	IP      netip.Addr     `json:"ip"`
	Scope   backends.Scope `json:"scope"`
	Gateway string         `json:"gateway"`
}
