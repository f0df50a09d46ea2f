// Command logql asks the lines on stdin, as a log store would that had collected them: with Loki's own engine, without
// the store. Usage: logql QUERY <LINES; the result is Loki's JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/go-kit/log"
	"github.com/grafana/dskit/user"
	"github.com/grafana/loki/v3/pkg/logproto"
	"github.com/grafana/loki/v3/pkg/logql"
	"github.com/grafana/loki/v3/pkg/logql/syntax"
	"github.com/grafana/loki/v3/pkg/util/marshal"
)

const (
	labels  = `{container="dnstrail", namespace="dnstrail"}`
	maxLine = 1 << 20
	limit   = 10000
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(query string) error {
	stream, err := read()
	if err != nil {
		return err
	}
	expression, err := syntax.ParseExpr(query)
	if err != nil {
		return err
	}
	// Metrics are asked for now, lines of the last hour.
	end := time.Now()
	start := end.Add(-time.Hour)
	if _, metric := expression.(syntax.SampleExpr); metric {
		start = end
	}
	params, err := logql.NewLiteralParams(query, start, end, 0, 0, logproto.FORWARD, limit, nil, nil)
	if err != nil {
		return err
	}
	querier := logql.NewMockQuerier(0, []logproto.Stream{stream})
	engine := logql.NewEngine(logql.EngineOpts{}, querier, logql.NoLimits, log.NewNopLogger())
	result, err := engine.Query(params).Exec(user.InjectOrgID(context.Background(), "dnstrail"))
	if err != nil {
		return err
	}
	value, err := marshal.NewResultValue(result.Data)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(value)
}

// read takes every line as collected just now, one nanosecond after the one before.
func read() (logproto.Stream, error) {
	stream := logproto.Stream{Labels: labels}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	first := time.Now().Add(-time.Minute)
	for lines.Scan() {
		at := first.Add(time.Duration(len(stream.Entries)))
		stream.Entries = append(stream.Entries, logproto.Entry{Timestamp: at, Line: lines.Text()})
	}
	return stream, lines.Err()
}
