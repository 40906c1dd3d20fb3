package natpmp_test

import (
	"net"
	"reflect"
	"testing"
	"time"

	jackpal "github.com/jackpal/go-nat-pmp"

	natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
)

// constructors and methods are the API of both packages. A program that compiles with one
// package therefore compiles with the other.
type constructors[Client any] struct {
	plain           func(gateway net.IP) *Client
	local           func(gateway net.IP, local net.IP) *Client
	timeout         func(gateway net.IP, timeout time.Duration) *Client
	localAndTimeout func(gateway net.IP, local net.IP, timeout time.Duration) *Client
}

type methods[Address, Mapping any] interface {
	GetExternalAddress() (*Address, error)
	AddPortMapping(protocol string, internalPort, requestedExternalPort int, lifetime int) (*Mapping, error)
	AddPortMappingWithDuration(protocol string, internalPort, requestedExternalPort int, duration time.Duration) (*Mapping, error)
}

var (
	_ = constructors[jackpal.Client]{
		jackpal.NewClient, jackpal.NewClientWithLocal, jackpal.NewClientWithTimeout, jackpal.NewClientWithLocalAndTimeout,
	}
	_ = constructors[natpmp.Client]{
		natpmp.NewClient, natpmp.NewClientWithLocal, natpmp.NewClientWithTimeout, natpmp.NewClientWithLocalAndTimeout,
	}
	_ methods[jackpal.GetExternalAddressResult, jackpal.AddPortMappingResult] = (*jackpal.Client)(nil)
	_ methods[natpmp.GetExternalAddressResult, natpmp.AddPortMappingResult]   = (*natpmp.Client)(nil)

	// The results have the same fields of the same types in the same order.
	_ = natpmp.GetExternalAddressResult(jackpal.GetExternalAddressResult{})
	_ = natpmp.AddPortMappingResult(jackpal.AddPortMappingResult{})

	// The constants are untyped and have the same value.
	_ = [1]struct{}{natpmp.RECOMMENDED_MAPPING_LIFETIME_SECONDS - jackpal.RECOMMENDED_MAPPING_LIFETIME_SECONDS: {}}
)

// TestSameMethods checks that Client has every method of the Client in go-nat-pmp. It fails if
// a newer go-nat-pmp has a method that this package lacks.
func TestSameMethods(t *testing.T) {
	want, got := reflect.TypeFor[*jackpal.Client](), reflect.TypeFor[*natpmp.Client]()
	for i := range want.NumMethod() {
		if name := want.Method(i).Name; !hasMethod(got, name) {
			t.Errorf("Client has no method %s", name)
		}
	}
}

func hasMethod(t reflect.Type, name string) bool {
	_, ok := t.MethodByName(name)
	return ok
}
