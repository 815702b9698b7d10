"""Decoder Denoising Pretraining (Brempong et al., TMLR 2022)."""
