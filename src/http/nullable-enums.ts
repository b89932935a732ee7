type Schema = Record<string, unknown>

/** Whether a schema is of texts that are listed, or of null. */
export function isNullableEnum(node: object): node is Schema {
  return 'enum' in node && 'type' in node && Array.isArray(node.type) && node.type.includes('null')
}

/**
 * Splits a nullable enum into the enum and null: generators make a type of an enum's values, and null has no name
 * there.
 */
export function splitNullableEnum({ description, ...schema }: Schema): Schema {
  const type = (schema.type as string[]).find((each) => each !== 'null')
  const values = (schema.enum as unknown[]).filter((word) => word !== null)
  return {
    ...(description !== undefined && { description }),
    ...(schema.examples !== undefined && { examples: schema.examples }),
    anyOf: [{ ...schema, type, enum: values }, { type: 'null' }]
  }
}
