package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/errno"
)

// gatewaysTimeout bounds the requests to the gateways, unless --timeout is set. gateways then
// finds the same devices as map.
const gatewaysTimeout = forward.DefaultDiscoveryTimeout

func (a *app) gatewaysCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "gateways",
		Short:   "Show this host's gateways and the protocols they support",
		Long:    gatewaysHelp,
		Example: gatewaysExamples,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.gateways(cmd.Context()) },
	}
}

// gatewayRow is a gateway and the status of each protocol on it.
type gatewayRow struct {
	addr      netip.AddrPort // port 0: the default port of each protocol
	route     discover.Gateway
	isDefault bool // the kernel uses it for the internet
	isNamed   bool // the user named it: no UPnP device of another host is used
	statuses  []protocolStatus
}

// protocolStatus is the result of probing a gateway for one protocol.
type protocolStatus struct {
	protocol protocol
	status   string // yes, no, refused or silent; empty: not probed
	external netip.Addr
	devices  []upnp.Gateway // UPnP devices that the search found, the preferred one first
	took     time.Duration
	err      error
}

func (a *app) gateways(ctx context.Context) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	rows, err := a.gatewayRows()
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return a.settings.noRouteError()
	}
	a.probeGateways(ctx, rows)
	if ctx.Err() != nil {
		return errInterrupted
	}
	if a.settings.json {
		for _, r := range rows {
			a.printJSON(r.record())
		}
		return nil
	}
	a.printTable(a.gatewayTable(rows))
	if t := deviceTable(rows); t != nil {
		a.resultf("\n")
		a.printTable(t)
	}
	a.printProbeErrors(rows)
	return nil
}

// gatewayRows returns the gateways of the default routes, or only the named gateway.
func (a *app) gatewayRows() ([]*gatewayRow, error) {
	all, used, err := a.defaultRoutes()
	named := a.settings.namedGateway()
	if err != nil && !named.IsValid() { // a named gateway needs no routes
		return nil, err
	}
	var rows []*gatewayRow
	for _, g := range all {
		if a.settings.iface != "" && g.Interface != a.settings.iface || named.IsValid() && g.Addr != named.Addr() {
			continue
		}
		rows = append(rows, &gatewayRow{addr: netip.AddrPortFrom(g.Addr, named.Port()), route: g, isDefault: slices.Contains(used, g)})
	}
	if named.IsValid() && len(rows) == 0 {
		row := &gatewayRow{addr: named}
		if g, err := discover.Route(named.Addr()); err == nil {
			row.route = discover.Gateway{Local: g.Local, Interface: g.Interface, Index: g.Index}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// systemDefaultRoutes returns the default routes of the host, and those that the kernel uses:
// one for each address family.
func systemDefaultRoutes() (all, used []discover.Gateway, err error) {
	for _, find := range []func() (discover.Gateway, error){discover.Default, discover.Default6} {
		if g, err := find(); err == nil {
			used = append(used, g)
		}
	}
	all, err = discover.Gateways()
	return all, used, err
}

// probeGateways probes all gateways at once. It does not fail: each protocolStatus has its own
// error.
func (a *app) probeGateways(ctx context.Context, rows []*gatewayRow) {
	ctx, cancel := withTimeout(ctx, cmp.Or(a.settings.timeout, gatewaysTimeout))
	defer cancel()
	var wg sync.WaitGroup
	for _, r := range rows {
		r.isNamed = a.settings.namedGateway().IsValid()
		r.statuses = make([]protocolStatus, len(a.selectedProtocols()))
		for i, p := range a.selectedProtocols() {
			r.statuses[i].protocol = p
			if addr := r.addr.Addr(); addr.Is4() || addr.Is6() && p.ipv6 {
				wg.Go(func() { r.statuses[i] = a.probeGateway(ctx, p, r) })
			}
		}
	}
	wg.Wait()
}

// probeGateway sends a gateway the cheapest request of one protocol.
func (a *app) probeGateway(ctx context.Context, p protocol, r *gatewayRow) protocolStatus {
	t := target{
		gateway: r.addr, iface: a.settings.iface, source: a.settings.source,
		igdURL: a.settings.igd, ssdp: a.settings.ssdp,
	}
	if !a.settings.namedGateway().IsValid() {
		t.iface = r.route.Interface
		if !t.source.IsValid() {
			t.source = r.route.Local
		}
	}
	st := protocolStatus{protocol: p, status: "no"}
	b, err := p.open(a, t)
	if err != nil {
		st.err = err
		return st
	}
	defer func() { _ = b.Close() }()
	start := time.Now()
	if b.devices == nil {
		st.external, st.err = b.probe(ctx)
	} else if st.devices, st.err = b.devices(ctx); st.err == nil {
		if best := st.devices[0]; best.Default {
			st.external = best.External
		} else {
			st.err = fmt.Errorf("%w: the device at %v answered; it is not this gateway's", backends.ErrUnsupported, best.Device.Host)
		}
	}
	st.took, st.status = time.Since(start), probeStatus(st.err)
	return st
}

// probeStatus describes an error in one word. A gateway that refuses to map anything, or has
// no internet connection, still supports the protocol.
func probeStatus(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, errno.ECONNREFUSED), errors.Is(err, backends.ErrNotAuthorized):
		return "refused"
	case errors.Is(err, backends.ErrNoReply):
		return "silent"
	case errors.Is(err, backends.ErrUnsupported), errors.Is(err, backends.ErrMalformed):
		return "no"
	}
	return "yes"
}

func (a *app) gatewayTable(rows []*gatewayRow) *table {
	head := []string{"USED", "GATEWAY", "INTERFACE", "LOCAL", "METRIC"}
	for _, p := range a.selectedProtocols() {
		head = append(head, p.title)
	}
	t := newTable(append(head, "EXTERNAL", "TOOK")...)
	for _, r := range rows {
		used, metric := " ", ""
		if r.isDefault {
			used = "*"
		}
		if r.route.Addr.IsValid() || r.isDefault {
			metric = strconv.Itoa(r.route.Metric)
		}
		cells := []string{used, r.name(), r.route.Interface, addrText(r.route.Local), metric}
		var external, took string
		for _, st := range r.statuses {
			cells = append(cells, st.status)
			if st.err == nil && st.status != "" && took == "" && st.devices == nil { // a search always waits for late replies
				took = st.took.Round(10 * time.Microsecond).String()
			}
			if external == "" {
				external = addrText(st.external)
			}
		}
		t.addRow(append(cells, external, took)...)
	}
	return t
}

func (r *gatewayRow) name() string {
	if !r.addr.Addr().IsValid() {
		return "(no next hop)"
	}
	return endpointText(r.addr)
}

// printProbeErrors prints the reasons for each protocol that failed.
func (a *app) printProbeErrors(rows []*gatewayRow) {
	for _, r := range rows {
		for _, st := range r.statuses {
			if st.err != nil {
				a.messagef("%s: %s: %s\n", r.name(), st.protocol.title, strings.TrimPrefix(errorText(st.err), st.protocol.name+": "))
			}
		}
	}
}

// uses reports whether map uses this device if it is the preferred one. It uses the device of
// another host only if the gateway supports no protocol and is not named.
func (r *gatewayRow) uses(g upnp.Gateway) bool {
	return g.Default || !r.isNamed && !slices.ContainsFunc(r.statuses, func(st protocolStatus) bool { return st.status == "yes" })
}

// deviceTable returns a table of the UPnP devices, with the reason why each is used or not.
// The devices of one gateway are together, and the preferred one is first. It returns nil if
// there are none.
func deviceTable(rows []*gatewayRow) *table {
	t := newTable("USED", "UPNP DEVICE", "ADDRESS", "SERVICE", "STATUS", "EXTERNAL", "WHY")
	for _, r := range rows {
		for _, st := range r.statuses {
			for i, g := range st.devices {
				used := " "
				if i == 0 && r.uses(g) {
					used = "*"
				}
				t.addRow(used, deviceText(g.Device), g.Device.Host.String(), serviceText(g.Service),
					g.Status.Connection, addrText(g.External), g.Reason)
			}
		}
	}
	if len(t.rows) == 1 {
		return nil
	}
	return t
}

// deviceText describes a device to people by its name, and by its model if that adds
// information.
func deviceText(d *upnp.Device) string {
	name, model := d.FriendlyName, modelText(d)
	switch {
	case name == "" || strings.Contains(model, name):
		return model
	case model == "" || strings.Contains(name, model):
		return name
	}
	return name + " (" + model + ")"
}

func modelText(d *upnp.Device) string {
	if strings.Contains(d.Model, d.ModelNumber) {
		return d.Model
	}
	return strings.TrimSpace(d.Model + " " + d.ModelNumber)
}

// serviceText returns the name of the service in the standards, without the URN around it.
func serviceText(s upnp.Service) string {
	return s.Kind().String() + ":" + strconv.Itoa(s.Version())
}

// gatewayRecord is a gatewayRow in JSON.
type gatewayRecord struct {
	Event     string                    `json:"event"`
	Gateway   string                    `json:"gateway"`
	Interface string                    `json:"interface"`
	Local     string                    `json:"local"`
	Metric    int                       `json:"metric"`
	Used      bool                      `json:"used"`
	Protocols map[string]protocolRecord `json:"protocols"`
}

// protocolRecord is a protocolStatus in JSON.
type protocolRecord struct {
	Status   string         `json:"speaks"`
	External string         `json:"external,omitempty"`
	Devices  []deviceRecord `json:"devices,omitempty"`
	Took     float64        `json:"took_ms"`
	Error    string         `json:"error,omitempty"`
}

// deviceRecord is a UPnP device in JSON.
type deviceRecord struct {
	URL      string `json:"url"`
	Name     string `json:"name"`
	Model    string `json:"model"`
	Service  string `json:"service"`
	Status   string `json:"status,omitempty"`
	External string `json:"external,omitempty"`
	Used     bool   `json:"used"`
	Reason   string `json:"reason"`
}

func (r *gatewayRow) deviceRecords(devices []upnp.Gateway) []deviceRecord {
	var out []deviceRecord
	for i, g := range devices {
		out = append(out, deviceRecord{
			URL: g.Device.URL, Name: g.Device.FriendlyName, Model: modelText(g.Device), Service: g.Service.Type,
			Status: g.Status.Connection, External: addrText(g.External), Used: i == 0 && r.uses(g), Reason: g.Reason,
		})
	}
	return out
}

// record returns the row in JSON. It omits protocols that were not probed.
func (r *gatewayRow) record() gatewayRecord {
	protocols := map[string]protocolRecord{}
	for _, st := range r.statuses {
		if st.status == "" {
			continue
		}
		rec := protocolRecord{
			Status: st.status, External: addrText(st.external), Devices: r.deviceRecords(st.devices),
			Took: float64(st.took.Microseconds()) / 1000,
		}
		if st.err != nil {
			rec.Error = errorText(st.err)
		}
		protocols[st.protocol.name] = rec
	}
	address := ""
	if r.addr.Addr().IsValid() {
		address = endpointText(r.addr)
	}
	return gatewayRecord{"gateway", address, r.route.Interface, addrText(r.route.Local), r.route.Metric, r.isDefault, protocols}
}
