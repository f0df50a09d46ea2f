// runtime-default prints the seccomp profile that containerd gives to a container with the capabilities named on its
// command line: what Kubernetes calls RuntimeDefault.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	spec := &specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: os.Args[1:]}},
		Linux:   &specs.Linux{},
	}
	if err := json.NewEncoder(os.Stdout).Encode(seccomp.DefaultProfile(spec)); err != nil {
		log.Fatal(err)
	}
}
