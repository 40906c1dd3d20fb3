package proof

import (
	"reflect"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/nat"
	"github.com/naoina/toml"

	"github.com/natforward/goforward/adapters/gethnat"
)

var _ nat.Interface = (*gethnat.NAT)(nil)

// The text is one that go-ethereum reads.
func TestMarshalText(t *testing.T) {
	text, err := gethnat.New(nil).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := nat.Parse(string(text)); err != nil || n == nil {
		t.Errorf("nat.Parse(%q): %v, %v", text, n, err)
	}
}

// asGeth names what is in a file as the geth program does: as the fields are.
var gethTOML = toml.Config{
	NormFieldName: func(_ reflect.Type, key string) string { return key },
	FieldToKey:    func(_ reflect.Type, field string) string { return field },
}

// A configuration can be dumped to a file, and read from it.
func TestConfigFile(t *testing.T) {
	file, err := gethTOML.Marshal(&p2p.Config{NAT: gethnat.New(nil), ListenAddr: ":30303"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(file), `NAT = "any"`) {
		t.Errorf("the file does not name the NAT:\n%s", file)
	}
	var config p2p.Config
	if err := gethTOML.Unmarshal(file, &config); err != nil || config.NAT == nil || config.ListenAddr != ":30303" {
		t.Errorf("read %+v, %v", config, err)
	}
}
