package cli_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
)

// nowhere is an address at which nothing is received.
var nowhere = netip.MustParseAddrPort("127.0.0.1:0")

// patience bounds what takes milliseconds; a test that needs it has failed.
const patience = 20 * time.Second

// router starts a gateway.
func router(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// write writes a file with a mode, whatever the umask is.
func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// soapFault is a refusal.
func soapFault(code, text string) []byte {
	return []byte("HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>` +
		`<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code +
		`</errorCode><errorDescription>` + text + `</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`)
}
