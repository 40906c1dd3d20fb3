package errno_test

import (
	"net"
	"testing"

	"github.com/natforward/goforward/internal/errno"
)

// TestErrorsOfSystem checks that the functions recognize the errors of this system.
func TestErrorsOfSystem(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if other, err := net.Listen("tcp", ln.Addr().String()); err == nil {
		other.Close()
		t.Error("two sockets listen at the same address")
	} else if !errno.IsInUse(err) || errno.IsRefused(err) {
		t.Errorf("an address in use: %v", err)
	}
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = server.(*net.TCPConn).SetLinger(0) // Close resets the connection
	_ = server.Close()
	if _, err := client.Read(make([]byte, 1)); !errno.IsReset(err) || errno.IsRefused(err) {
		t.Errorf("a connection that was reset: %v", err)
	}
	_ = ln.Close()
	if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		conn.Close()
		t.Error("connected to a closed socket")
	} else if !errno.IsRefused(err) || errno.IsReset(err) || errno.IsFull(err) || errno.IsInUse(err) {
		t.Errorf("a connection that was refused: %v", err)
	}
}
