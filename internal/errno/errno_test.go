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
	} else if !errno.IsRefused(err) || errno.IsReset(err) || errno.IsFull(err) {
		t.Errorf("a connection that was refused: %v", err)
	}
}
