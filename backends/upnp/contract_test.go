package upnp_test

import (
	"testing"

	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/backendtest"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestContract(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"version 1": {Version: 1}, "version 2": {},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
				gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
				b := newBackend(t, gw, upnp.Config{Wait: searchWait, Timeout: searchWait})
				return backendtest.OnGateway(gw, b, int(upnp.ActionNotAuthorized))
			})
		})
	}
}
