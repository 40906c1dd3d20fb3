package cli

import (
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends/upnp"
)

// deviceTable are the UPnP devices that were found, those of a gateway together
// and the preferred first, with the reasons. It is nil where there is none.
func deviceTable(rows []*gatewayRow) *table {
	t := newTable("USED", "UPNP DEVICE", "ADDRESS", "SERVICE", "STATUS", "EXTERNAL", "WHY")
	for _, r := range rows {
		for _, an := range r.answers {
			for i, g := range an.devices {
				used := " "
				if i == 0 {
					used = "*"
				}
				t.row(used, deviceText(g.Device), g.Device.Host.String(), serviceText(g.Service),
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
