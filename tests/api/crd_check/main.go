// Command crd-check answers what an API server would: it checks the CustomResourceDefinition named on its command line
// as at creation, then every object on stdin, one JSON line each, as at a create or, with "old", an update.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

const maxLineBytes = 16 << 20

type question struct {
	Name   string          `json:"name"`
	Object json.RawMessage `json:"object"`
	Old    json.RawMessage `json:"old"`
}

type answer struct {
	Name   string                 `json:"name"`
	Errors []string               `json:"errors"`
	Cost   int64                  `json:"cost"`
	Object map[string]interface{} `json:"object,omitempty"`
}

type server struct {
	structural *structuralschema.Structural
	schema     schemavalidation.SchemaValidator
	rules      *cel.Validator
}

func main() {
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("given %d arguments; accepted: the file of a CustomResourceDefinition", len(args))
	}
	ctx := context.Background()
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	checker, problems, err := load(ctx, text)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{Name: "definition", Errors: problems}); err != nil || checker == nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		var asked question
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		told, err := checker.check(ctx, asked)
		if err != nil {
			return fmt.Errorf("%s: %w", asked.Name, err)
		}
		if err := out.Encode(told); err != nil {
			return err
		}
	}
	return lines.Err()
}

// load checks a definition as the API server does before it stores one. Without problems it also returns a server.
func load(ctx context.Context, text []byte) (*server, []string, error) {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	decoded, _, err := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer().Decode(text, nil, &v1.CustomResourceDefinition{})
	if err != nil {
		return nil, nil, err
	}
	scheme.Default(decoded)
	definition := &apiextensions.CustomResourceDefinition{}
	if err := scheme.Convert(decoded, definition, nil); err != nil {
		return nil, nil, err
	}
	// The status of a stored definition always names its versions; the server writes it before it validates.
	definition.Status.StoredVersions = []string{definition.Spec.Versions[0].Name}
	if problems := crdvalidation.ValidateCustomResourceDefinition(ctx, definition); len(problems) > 0 {
		return nil, texts(problems), nil
	}
	validation, err := apiextensions.GetSchemaForVersion(definition, definition.Spec.Versions[0].Name)
	if err != nil {
		return nil, nil, err
	}
	structural, err := structuralschema.NewStructural(validation.OpenAPIV3Schema)
	if err != nil {
		return nil, nil, err
	}
	schema, _, err := schemavalidation.NewSchemaValidator(validation.OpenAPIV3Schema)
	if err != nil {
		return nil, nil, err
	}
	return &server{structural, schema, cel.NewValidator(structural, true, celconfig.PerCallLimit)}, []string{}, nil
}

// check does what a request does: unknown fields, defaults, schema, lists, then rules, which only see a sound object.
func (s *server) check(ctx context.Context, asked question) (answer, error) {
	told := answer{Name: asked.Name, Errors: []string{}}
	object, unknown, err := s.stored(asked.Object)
	if err != nil {
		return told, err
	}
	told.Object = object
	for _, path := range unknown {
		told.Errors = append(told.Errors, fmt.Sprintf("strict decoding error: unknown field %q", path))
	}
	problems := schemavalidation.ValidateCustomResource(nil, object, s.schema)
	problems = append(problems, listtype.ValidateListSetsAndMaps(nil, s.structural, object)...)
	told.Errors = append(told.Errors, texts(problems)...)
	if len(problems) > 0 {
		return told, nil
	}
	var before interface{}
	if len(asked.Old) > 0 {
		if before, _, err = s.stored(asked.Old); err != nil {
			return told, err
		}
	}
	broken, left := s.rules.Validate(ctx, nil, s.structural, object, before, celconfig.RuntimeCELCostBudget)
	told.Errors = append(told.Errors, texts(broken)...)
	told.Cost = celconfig.RuntimeCELCostBudget - left
	return told, nil
}

// stored is an object as the server would keep it, and the paths of the fields that it would drop.
func (s *server) stored(text json.RawMessage) (map[string]interface{}, []string, error) {
	var object map[string]interface{}
	if err := utiljson.Unmarshal(text, &object); err != nil {
		return nil, nil, err
	}
	unknown := pruning.PruneWithOptions(object, s.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	defaulting.PruneNonNullableNullsWithoutDefaults(object, s.structural)
	defaulting.Default(object, s.structural)
	return object, unknown, nil
}

func texts(problems field.ErrorList) []string {
	found := []string{}
	for _, problem := range problems {
		found = append(found, problem.Error())
	}
	return found
}
