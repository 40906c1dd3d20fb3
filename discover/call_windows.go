package discover

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// The functions of the IP helper API that this package uses. Wine lacks some of them, and
// others fail there. Only call calls them.
var (
	iphlpapi                         = windows.NewLazySystemDLL("iphlpapi.dll")
	procGetBestRoute2                = iphlpapi.NewProc("GetBestRoute2")
	procGetIPForwardTable2           = iphlpapi.NewProc("GetIpForwardTable2")
	procGetIPInterfaceEntry          = iphlpapi.NewProc("GetIpInterfaceEntry")
	procFreeMibTable                 = iphlpapi.NewProc("FreeMibTable")
	procNotifyIPInterfaceChange      = iphlpapi.NewProc("NotifyIpInterfaceChange")
	procNotifyUnicastIPAddressChange = iphlpapi.NewProc("NotifyUnicastIpAddressChange")
	procNotifyRouteChange2           = iphlpapi.NewProc("NotifyRouteChange2")
	procCancelMibChangeNotify2       = iphlpapi.NewProc("CancelMibChangeNotify2")
)

// call calls a function that returns an error code. If the system lacks the function, call
// fails with errMissing; LazyProc.Call would panic, as the functions of package windows do.
// Because of the directive, the memory that the arguments point to does not move.
//
//go:uintptrescapes
func call(p *windows.LazyProc, args ...uintptr) error {
	if err := p.Find(); err != nil {
		return fmt.Errorf("%w: %w", errMissing, err)
	}
	if code, _, _ := p.Call(args...); code != 0 {
		return fmt.Errorf("%s: %w", p.Name, windows.Errno(code))
	}
	return nil
}
