package cli

import (
	"github.com/natforward/goforward/backends/upnp"
)

// answerRecord is an answer in JSON.
type answerRecord struct {
	Speaks   string         `json:"speaks"`
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
	answers := map[string]answerRecord{}
	for _, an := range r.answers {
		if an.speaks == "" {
			continue
		}
		rec := answerRecord{
			Speaks: an.speaks, External: addrText(an.external), Devices: deviceRecords(an.devices),
			Took: float64(an.took.Microseconds()) / 1000,
		}
		if an.err != nil {
			rec.Error = an.err.Error()
		}
		answers[an.opener.name] = rec
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
		Protocols map[string]answerRecord `json:"protocols"`
	}{"gateway", address, r.route.Interface, addrText(r.route.Local), r.route.Metric, r.used, answers}
}
