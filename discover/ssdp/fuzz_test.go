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

// wellFormed holds for every value that a parser returns.
func wellFormed(t *testing.T, values ...string) {
	t.Helper()
	for _, v := range values {
		if strings.ContainsFunc(v, unicode.IsControl) || strings.Trim(v, " ") != v || len(v) > maxDatagram {
			t.Fatalf("value %q", v)
		}
	}
}

// No parser panics or changes its input, and how lines end means nothing.
func FuzzParseResponse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		a, err := ParseResponse(b)
		if string(b) != in {
			t.Fatal("the input changed")
		}
		if err != nil {
			if a != (Response{}) {
				t.Fatalf("%+v with %v", a, err)
			}
			return
		}
		if a.Location == "" || a.MaxAge < 0 || !strings.HasPrefix(a.USN, a.UDN()) {
			t.Fatalf("%+v", a)
		}
		wellFormed(t, a.Location, a.Target, a.USN, a.Server)
		again, err := ParseResponse(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
		if err != nil || again != a {
			t.Fatalf("%+v, and with LF alone %+v, %v", a, again, err)
		}
	})
}

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
		wellFormed(t, n.Location, n.Type, n.USN, n.Server)
		again, err := ParseNotification(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
		if err != nil || again != n {
			t.Fatalf("%+v, and with LF alone %+v, %v", n, again, err)
		}
	})
}
