package upnp

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/huin/goupnp/soap"
)

// TestEncodeAction compares the body of requests with the one of package goupnp.
func TestEncodeAction(t *testing.T) {
	const serviceType = "urn:schemas-upnp-org:service:WANIPConnection:2"
	for name, in := range map[string]any{
		"no arguments": nil,
		"an entry": entryArgs{
			NewExternalPort: "6881", NewProtocol: "UDP", NewInternalPort: "6881", NewInternalClient: "192.168.1.10",
			NewEnabled: "1", NewPortMappingDescription: `a < b && "c" > 'd' ]]>`, NewLeaseDuration: "3600",
		},
	} {
		var want bodyOf
		client := soap.SOAPClient{EndpointURL: url.URL{Scheme: "http", Host: "192.0.2.1"}, HTTPClient: http.Client{Transport: &want}}
		if err := client.PerformActionCtx(t.Context(), serviceType, "AddPortMapping", in, nil); want == nil {
			t.Fatal(err)
		}
		want = bytes.Replace(want, []byte(xml.Header), []byte(`<?xml version="1.0"?>`), 1) // ours is shorter
		if got := encodeAction(serviceType, "AddPortMapping", in); !bytes.Equal(got, want) {
			t.Errorf("%s:\n%s, want\n%s", name, got, want)
		}
	}
}

// bodyOf is an http.RoundTripper that keeps the body of the request, and does not send it.
type bodyOf []byte

func (b *bodyOf) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	*b = body
	if err == nil {
		err = http.ErrUseLastResponse
	}
	return nil, err
}
