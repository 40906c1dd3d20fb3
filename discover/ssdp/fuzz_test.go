package ssdp

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func seed(f *testing.F) {
	for _, s := range []string{plain, alive, byebye, update} {
		f.Add([]byte(s))
		f.Add([]byte(crlf(s)))
		f.Add([]byte(s[:len(s)/2]))
	}
	f.Add([]byte("HTTP/1.1 200\nLOCATION:x"))
	f.Add([]byte("HTTP/1.0 200 \nlocation :\t x\t\n y\nst:\xff\nCache-Control:max-age=1,max-age\n\nz"))
	f.Add([]byte("M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n"))
	f.Add([]byte("\x00\xff\n\r\r\n:"))
	f.Add(bytes.Repeat([]byte("a:b\n"), 100))
}

// checkValues checks what is true for every value that a parser returns.
func checkValues(t *testing.T, values ...string) {
	t.Helper()
	for _, v := range values {
		if strings.ContainsFunc(v, unicode.IsControl) || strings.Trim(v, " ") != v || len(v) > maxDatagram {
			t.Fatalf("value %q", v)
		}
	}
}

// FuzzParseResponse checks that the parser does not panic or change its input, and that LF
// and CRLF give the same result.
func FuzzParseResponse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		r, err := ParseResponse(b)
		if string(b) != in {
			t.Fatal("the input changed")
		}
		if err != nil {
			if r != (Response{}) {
				t.Fatalf("%+v with %v", r, err)
			}
			return
		}
		if r.Location == "" || r.MaxAge < 0 || !strings.HasPrefix(r.USN, r.UDN()) {
			t.Fatalf("%+v", r)
		}
		checkValues(t, r.Location, r.Target, r.USN, r.Server)
		withLF, err := ParseResponse(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
		if err != nil || withLF != r {
			t.Fatalf("%+v, and with LF alone %+v, %v", r, withLF, err)
		}
	})
}

// FuzzParseNotification checks the same properties as FuzzParseResponse.
func FuzzParseNotification(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		n, err := ParseNotification(b)
		if string(b) != in {
			t.Fatal("the input changed")
		}
		if err != nil {
			if n != (Notification{}) {
				t.Fatalf("%+v with %v", n, err)
			}
			return
		}
		if n.Kind < Alive || n.Kind > Update || n.USN == "" || n.Kind == Alive && n.Location == "" || n.MaxAge < 0 {
			t.Fatalf("%+v", n)
		}
		checkValues(t, n.Location, n.Type, n.USN, n.Server)
		withLF, err := ParseNotification(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
		if err != nil || withLF != n {
			t.Fatalf("%+v, and with LF alone %+v, %v", n, withLF, err)
		}
	})
}
