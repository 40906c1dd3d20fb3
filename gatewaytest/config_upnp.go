package gatewaytest

import (
	"fmt"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// upnpDefaults fills in the zero values and refuses what makes no sense.
func upnpDefaults(u quirks.UPnP) (quirks.UPnP, error) {
	if u.Version == 0 {
		u.Version = 2
	}
	if u.UDN == "" {
		u.UDN = randomUDN()
	}
	if u.Description.Path == "" {
		u.Description.Path = "/rootDesc.xml"
	}
	if u.Description.WANDevices == 0 {
		u.Description.WANDevices = 1
	}
	d := u.Description
	switch {
	case u.Version < 1 || u.Version > 2 || u.Search.Version < 0 || u.Search.Version > 2:
		return u, fmt.Errorf("gatewaytest: %w: IGD version %d, searched as %d", backends.ErrInvalid, u.Version, u.Search.Version)
	case !strings.HasPrefix(u.UDN, "uuid:") || strings.ContainsAny(u.UDN, "\r\n<&"):
		return u, fmt.Errorf("gatewaytest: %w: UDN %q", backends.ErrInvalid, u.UDN)
	case !strings.HasPrefix(d.Path, "/") || strings.ContainsAny(d.Path, " \r\n"):
		return u, fmt.Errorf("gatewaytest: %w: description path %q", backends.ErrInvalid, d.Path)
	case d.WANDevices < 0 || d.WANDevices > 16 || d.Connected < 0 || d.Connected >= d.WANDevices:
		return u, fmt.Errorf("gatewaytest: %w: %d WAN devices, number %d connected", backends.ErrInvalid, d.WANDevices, d.Connected)
	case u.Leases.Max < 0 || u.Leases.Reported < 0 || u.Rules.IdleAfter < 0 || u.Rules.IdleAbove < 0 || u.Demands.MaxDescription < 0:
		return u, fmt.Errorf("gatewaytest: %w: negative number in Config.Quirks.UPnP", backends.ErrInvalid)
	case u.Rules.ListedClient.IsValid() && !u.Rules.ListedClient.Is4():
		return u, fmt.Errorf("gatewaytest: %w: listed client %v is not IPv4", backends.ErrInvalid, u.Rules.ListedClient)
	}
	return u, nil
}
