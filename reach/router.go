package reach

import (
	"context"
	"fmt"

	"github.com/natforward/goforward/backends"
)

// Router returns a prober that makes the router connect to this host.
func Router() Prober { return router{} }

type router struct{}

// Name implements Prober.
func (router) Name() string { return "router" }

// Probe implements Prober.
func (router) Probe(context.Context, Target, Catcher) (Evidence, error) {
	return Evidence{Level: LevelLAN}, fmt.Errorf("%w: not written yet", backends.ErrUnsupported)
}
