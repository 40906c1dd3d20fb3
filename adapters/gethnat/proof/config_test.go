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

// TestMarshalText checks that go-ethereum parses the text of MarshalText.
func TestMarshalText(t *testing.T) {
	text, err := gethnat.New(nil).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := nat.Parse(string(text)); err != nil || n == nil {
		t.Errorf("nat.Parse(%q): %v, %v", text, n, err)
	}
}

// gethTOML has the settings of the geth program: the keys of a file are the field names.
var gethTOML = toml.Config{
	NormFieldName: func(_ reflect.Type, key string) string { return key },
	FieldToKey:    func(_ reflect.Type, field string) string { return field },
}

// TestConfigFile checks that a p2p.Config with the NAT can be written to a file and read
// again.
func TestConfigFile(t *testing.T) {
	file, err := gethTOML.Marshal(&p2p.Config{NAT: gethnat.New(nil), ListenAddr: ":30303"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(file), `NAT = "any"`) {
		t.Errorf("the file does not contain NAT = \"any\":\n%s", file)
	}
	var config p2p.Config
	if err := gethTOML.Unmarshal(file, &config); err != nil || config.NAT == nil || config.ListenAddr != ":30303" {
		t.Errorf("read %+v, %v", config, err)
	}
}
