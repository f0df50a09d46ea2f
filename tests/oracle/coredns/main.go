// CoreDNS with the plugins that the tests need: without the cloud and Kubernetes clients it builds in a fraction of the time.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/erratic"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/rewrite"
)

func main() {
	// The order of CoreDNS's plugin.cfg: it decides what the dnstap plugin sees.
	dnsserver.Directives = []string{
		"bind", "errors", "log", "dnstap", "rewrite", "autopath", "acl", "cache", "hosts", "loop", "forward", "erratic",
	}
	coremain.Run()
}
