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

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/errno"
	"github.com/spf13/cobra"
)

// questionTime bounds the questions of gateways, unless --timeout does.
const gatewaysTimeout = 2 * time.Second

func (a *app) gatewaysCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "gateways",
		Short:   "Show this host's gateways and what they speak",
		Long:    gatewaysHelp,
		Example: gatewaysExamples,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.gateways(cmd.Context()) },
	}
}

// gatewayRow is a gateway and what it said.
type gatewayRow struct {
	addr    netip.AddrPort // port 0: the protocol's own
	route   discover.Gateway
	isDefault    bool // it is the kernel's way to the internet
	statuses []protocolStatus
}

// answer is what a gateway said to one protocol.
type protocolStatus struct {
	protocol   protocol
	status   string // yes, no, refused or silent; empty: not asked
	external netip.Addr
	devices  []upnp.Gateway // of a protocol whose devices are searched for, the preferred first
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
		return fmt.Errorf("%w: there is no default route\n  → connect this host to a network, or name the gateway", forward.ErrNoGateway)
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

// gatewayRows are the default routes, or the gateway that was named.
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

// systemRoutes are the host's default routes, and those of them that the kernel
// uses, one of each family.
func systemDefaultRoutes() (all, used []discover.Gateway, err error) {
	for _, way := range []func() (discover.Gateway, error){discover.Default, discover.Default6} {
		if g, err := way(); err == nil {
			used = append(used, g)
		}
	}
	all, err = discover.Gateways()
	return all, used, err
}

// ask asks all gateways at once. It does not fail: what failed is the answer.
func (a *app) probeGateways(ctx context.Context, rows []*gatewayRow) {
	ctx, cancel := withTimeout(ctx, cmp.Or(a.settings.timeout, gatewaysTimeout))
	defer cancel()
	var wg sync.WaitGroup
	for _, r := range rows {
		r.statuses = make([]protocolStatus, len(a.selectedProtocols()))
		for i, o := range a.selectedProtocols() {
			r.statuses[i].protocol = o
			if addr := r.addr.Addr(); addr.Is4() || addr.Is6() && o.ipv6 {
				wg.Go(func() { r.statuses[i] = a.probeGateway(ctx, o, r) })
			}
		}
	}
	wg.Wait()
}

// question asks one gateway one protocol's cheapest question.
func (a *app) probeGateway(ctx context.Context, o protocol, r *gatewayRow) protocolStatus {
	w := target{
		gateway: r.addr, iface: a.settings.iface, source: a.settings.source,
		igdURL: a.settings.igd, ssdp: a.settings.ssdp,
	}
	if !a.settings.namedGateway().IsValid() {
		w.iface = r.route.Interface
		if !w.source.IsValid() {
			w.source = r.route.Local
		}
	}
	an := protocolStatus{protocol: o, status: "no"}
	b, err := o.open(a, w)
	if err != nil {
		an.err = err
		return an
	}
	defer func() { _ = b.Close() }()
	start := time.Now()
	if b.devices == nil {
		an.external, an.err = b.probe(ctx)
	} else if an.devices, an.err = b.devices(ctx); an.err == nil {
		an.external = an.devices[0].External
	}
	an.took, an.status = time.Since(start), probeStatus(an.err)
	return an
}

// verdict is an error in a word. A gateway that refuses to map anything, or has
// no internet connection, speaks the protocol nonetheless.
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
	for _, o := range a.selectedProtocols() {
		head = append(head, o.title)
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
		for _, an := range r.statuses {
			cells = append(cells, an.status)
			if an.err == nil && an.status != "" && took == "" && an.devices == nil { // a search goes on for late answers
				took = an.took.Round(10 * time.Microsecond).String()
			}
			if external == "" {
				external = addrText(an.external)
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

func addrText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// explain adds the reasons of those that did not answer well.
func (a *app) printProbeErrors(rows []*gatewayRow) {
	for _, r := range rows {
		for _, an := range r.statuses {
			if an.err != nil {
				a.messagef("%s: %s: %s\n", r.name(), an.protocol.title, strings.TrimPrefix(an.err.Error(), an.protocol.name+": "))
			}
		}
	}
}

// deviceTable are the UPnP devices that were found, those of a gateway together
// and the preferred first, with the reasons. It is nil where there is none.
func deviceTable(rows []*gatewayRow) *table {
	t := newTable("USED", "UPNP DEVICE", "ADDRESS", "SERVICE", "STATUS", "EXTERNAL", "WHY")
	for _, r := range rows {
		for _, an := range r.statuses {
			for i, g := range an.devices {
				used := " "
				if i == 0 {
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

// deviceText is what people know a device by: its name, and its model where that
// is more.
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

// serviceText is the service as the standards call it, without whose type it is.
func serviceText(s upnp.Service) string {
	return s.Kind().String() + ":" + strconv.Itoa(s.Version())
}

// answerRecord is an answer in JSON.
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

func deviceRecords(devices []upnp.Gateway) []deviceRecord {
	var out []deviceRecord
	for i, g := range devices {
		out = append(out, deviceRecord{
			URL: g.Device.URL, Name: g.Device.FriendlyName, Model: modelText(g.Device), Service: g.Service.Type,
			Status: g.Status.Connection, External: addrText(g.External), Used: i == 0, Reason: g.Reason,
		})
	}
	return out
}

// record is the row in JSON. Protocols that were not asked are left out.
func (r *gatewayRow) record() any {
	answers := map[string]protocolRecord{}
	for _, an := range r.statuses {
		if an.status == "" {
			continue
		}
		rec := protocolRecord{
			Status: an.status, External: addrText(an.external), Devices: deviceRecords(an.devices),
			Took: float64(an.took.Microseconds()) / 1000,
		}
		if an.err != nil {
			rec.Error = an.err.Error()
		}
		answers[an.protocol.name] = rec
	}
	address := ""
	if r.addr.Addr().IsValid() {
		address = endpointText(r.addr)
	}
	return struct {
		Event     string                  `json:"event"`
		Gateway   string                  `json:"gateway"`
		Interface string                  `json:"interface"`
		Local     string                  `json:"local"`
		Metric    int                     `json:"metric"`
		Used      bool                    `json:"used"`
		Protocols map[string]protocolRecord `json:"protocols"`
	}{"gateway", address, r.route.Interface, addrText(r.route.Local), r.route.Metric, r.isDefault, answers}
}
